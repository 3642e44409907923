"""A training step as the formulas and the X-ray take it: everything that decides its bytes."""

from dataclasses import dataclass

from qlora_kit.errors import KitError

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
    def element_bytes(self):
        """Bytes of an element of the model's dtype: unquantised weights, activations."""
        if self.method == "full":
            return BYTES[self.adapter_dtype]
        return 4 if self.prepare_kbit else 2

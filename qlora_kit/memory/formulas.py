"""The memory of a training step in closed formulas: arithmetic, without weights and without a GPU.

A step is at its fullest in one of these moments, and the budget is the fullest of them, term by
term:

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

from dataclasses import dataclass

from qlora_kit.errors import KitError
from qlora_kit.memory.activations import layer
from qlora_kit.memory.gpus import Gpu
from qlora_kit.memory.setup import BYTES
from qlora_kit.memory.static import optimizer_states, trained_shapes, weights

# TRL's tiled loss (trl 1.16, kernels/chunked_logprob.py) projects this many tokens at a time to
# this many words.
TILE_TOKENS, TILE_WORDS = 4096, 32768
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


def needed(peak_allocated, gpu):
    """Bytes that the GPU must have: the peak, the gaps to be expected, CUDA's own context."""
    return int(RESERVED[1] * peak_allocated) + gpu.context


def fits(peak_allocated, gpu):
    """True if a step with that peak is expected to run on the GPU."""
    return needed(peak_allocated, gpu) <= gpu.total


def budget(architecture, setup, gpu):
    """The Budget of one training step.

    Raises KitError for an architecture that the formulas do not cover.
    """
    if not architecture.covered:
        raise KitError(
            f"The formulas do not cover {architecture.name} (model type "
            f"{architecture.model_type}); the X-ray may: add --xray."
        )
    tokens, s, width = setup.tokens, setup.element_bytes, architecture.hidden
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
    element = 4 if setup.element_bytes == 4 and not setup.mixed else 2
    return architecture.vocabulary * setup.tokens * element


def loss_bytes(architecture, setup):
    """Bytes of what the loss makes of the logits, at their most.

    Plain: in the backward pass of log_softmax its output, the gradient that comes in and the one
    that goes out are there in float32 (transformers' ForCausalLMLoss). Tiled: a tile of logits, the
    hidden states, a copy of them, and their gradient in float32 and in their own dtype.
    """
    if setup.loss == "plain":
        return 12 * architecture.vocabulary * setup.tokens
    tile = min(setup.tokens, TILE_TOKENS) * TILE_WORDS * (2 if setup.mixed else setup.element_bytes)
    return tile + (4 + 3 * setup.element_bytes) * architecture.hidden * setup.tokens

"""The bytes of a training step at each moment at which it may be fullest, term by term.

Nothing here is fitted: each term is a list of tensors, found with the X-ray and explained where it
is computed. The names of the sizes are those of `architectures`.
"""

from dataclasses import dataclass

from qlora_kit.memory.activations import layer
from qlora_kit.memory.setup import BYTES, LINEARS
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


@dataclass(frozen=True)
class Trained:
    """Bytes of what is trained, and so of its gradients: all of it, one layer's part, the head's.

    `down` is the part of down_proj, whose gradient is the first of a layer's. `casts` are
    autocast's 16-bit copies of one layer's weights, which a product keeps for its backward pass;
    `head_cast` is the same of the output layer.
    """

    total: int
    layer: float
    head: int
    down: int
    casts: float
    head_cast: int


def trained(architecture, setup):
    """The Trained of a step."""
    size, full = BYTES[setup.adapter_dtype], setup.method == "full"
    output = architecture.vocabulary * architecture.hidden
    linear = architecture.linear_parameters() / architecture.layers
    adapters = [name for name in setup.targets if name in LINEARS]
    rank_sized = 0 if full else architecture.adapter_parameters(setup.rank, adapters)
    each = linear if full else rank_sized / architecture.layers
    casts = 0
    if setup.mixed and setup.element_bytes == 4 and setup.method != "qlora":
        casts += 2 * linear  # of a frozen weight too: the gradient of its input needs it
    if setup.mixed and size == 4 and not full:
        casts += 2 * each
    shapes = trained_shapes(architecture, setup)
    return Trained(
        total=sum(count * elements for count, elements in shapes) * size,
        layer=each * size,
        head=output * size if full else 0,
        down=architecture.intermediate * architecture.hidden * size if full else 0,
        casts=casts,
        head_cast=2 * output if setup.mixed and setup.element_bytes == 4 else 0,
    )


def moments(architecture, setup, gpu):
    """{moment: {term: bytes}}; see `formulas` for the moments."""
    tokens, s, width = setup.tokens, setup.element_bytes, architecture.hidden
    full, size = setup.method == "full", BYTES[setup.adapter_dtype]
    learnt = trained(architecture, setup)
    states = sum(
        count * sum(optimizer_states(setup.optimizer, elements, size))
        for count, elements in trained_shapes(architecture, setup)
    )
    one, layers = layer(architecture, setup, gpu), architecture.layers
    always = weights(architecture, setup) | {
        "adapter": 0 if full else learnt.total,
        "optimizer": states,
        "workspace": gpu.workspace,
    }
    logits = output_bytes(architecture, setup) if setup.keep_outputs else 0
    # DistributedDataParallel copies every gradient into its buckets (of 25 MiB by default), unless
    # gradient_as_bucket_view is set. What NCCL takes is not torch's and not counted.
    buckets = learnt.total if setup.ddp else 0

    def moment(gradients=0, checkpoints=0, activations=0, loss=0, dequantised=0):
        terms = always | {
            "gradients": gradients + buckets,
            "checkpoints": checkpoints,
            "layer activations": activations,
            "logits and loss": logits + loss,
            "dequantised weights": dequantised,
        }
        return {name: int(bytes_) for name, bytes_ in terms.items()}

    stream = s * width * tokens  # what goes from layer to layer, and its gradient
    # The backward pass begins with all that was kept and no gradient but the output layer's, and
    # ends the other way round.
    end = learnt.head + learnt.layer * (layers - 1) + learnt.down
    if setup.checkpointing:
        kept, rest, before, last = layers * stream, stream, 0, 0
    else:
        kept, rest = (layers * stream, stream) if s == 4 else (0, 0)
        before = tokens * (one.kept + one.last) + learnt.casts
        last = (layers - 1) * before

    def in_a_layer(activations, dequantised=0):
        """The fuller of a layer's backward pass at the beginning and at the end of the whole."""
        activations += stream + learnt.casts
        first = moment(learnt.head + learnt.down, kept, last + activations, 0, dequantised)
        final = moment(end, rest, activations, 0, dequantised)
        return max(first, final, key=lambda terms: sum(terms.values()))

    found = {
        "loss": moment(
            checkpoints=kept,
            activations=before + last + final_norm(architecture, setup),
            loss=loss_bytes(architecture, setup, learnt),
        ),
        "layer": in_a_layer(tokens * (one.kept + max(one.product, one.norm))),
        "step": moment(gradients=learnt.total * (2 if setup.optimizer == "adamw_torch" else 1)),
    }
    if full and architecture.tied:
        found["embedding"] = moment(gradients=learnt.total + 2 * learnt.head)
    if setup.method == "qlora":
        largest = max(rows * columns for rows, columns in architecture.linears().values())
        unpacked = BYTES[setup.compute_dtype] + (0.125 if setup.double_quant else 0)
        found["dequantised"] = in_a_layer(tokens * (one.kept + one.down), largest * unpacked)
    if setup.attention == "eager":
        found["softmax"] = in_a_layer(tokens * (one.attention + one.softmax))
    return found


def final_norm(architecture, setup):
    """Bytes that the norm before the output layer keeps, and the output layer of its own input.

    Its input in float32; where its weight is trained also that input normalised, and where the
    output layer is trained, what enters that.
    """
    each = 4
    if setup.method == "full":
        each += 4 if architecture.gemma else setup.element_bytes
        each += setup.element_bytes if setup.loss == "plain" else 0
    return each * architecture.hidden * setup.tokens


def output_bytes(architecture, setup):
    """Bytes of the logits that the model returns."""
    element = 4 if setup.element_bytes == 4 and not setup.mixed else 2
    return architecture.vocabulary * setup.tokens * element


def loss_bytes(architecture, setup, learnt):
    """Bytes of what the loss makes of the logits, at their most, with autocast's copies.

    Plain: in the backward pass of log_softmax its output, the gradient that comes in and the one
    that goes out are there in float32 (transformers' ForCausalLMLoss); before it the logits and
    their float32 copy, and with autocast the copies of what is trained, which it drops after the
    forward pass. Tiled: a tile of logits, the hidden states, a copy of them, and their gradient in
    float32 and in their own dtype. A trained output layer has its gradient summed up in float32 and
    then copied to its own dtype.
    """
    words, width, s = architecture.vocabulary, architecture.hidden, setup.element_bytes
    cached = learnt.casts * architecture.layers if setup.checkpointing else 0
    if s == 4 and setup.method == "lora":
        cached -= 2 * architecture.linear_parameters() if cached else 0  # frozen: never cached
    if setup.loss == "plain":
        scores = words * setup.tokens
        forward = 8 * scores + (2 * scores if setup.mixed or s == 2 else 0) + cached
        head = 2 * scores + learnt.head
        return max(12 * scores, forward, head) + learnt.head_cast
    tile = min(setup.tokens, TILE_TOKENS) * TILE_WORDS * (2 if setup.mixed else s)
    piece = copies = 0
    if learnt.head_cast:  # pieces of the output layer in 16 bits: in the backward pass two at once
        piece = 2 * width * (min(words, TILE_WORDS) + min(setup.tokens, TILE_TOKENS))
        copies = piece + 2 * width * min(max(words - TILE_WORDS, 0), TILE_WORDS)
    gradient = 0
    if setup.method == "full":
        gradient = words * width * (4 + (2 if s == 2 else 0))
    states = width * setup.tokens
    forward, backward = 2 * s * states + piece + cached, (4 + 3 * s) * states + copies + gradient
    return tile + max(forward, backward)

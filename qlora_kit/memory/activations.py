"""What one layer keeps for its backward pass, tensor by tensor, and what that pass adds."""

from dataclasses import dataclass

from qlora_kit.memory.setup import BYTES


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
    s = setup.element_bytes
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
    return gpu.flash and setup.element_bytes == 2

"""What one layer keeps for its backward pass, tensor by tensor, and what that pass adds."""

from dataclasses import dataclass

from qlora_kit.memory.setup import BYTES, LINEARS


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

    each norm keeps its input in float32 (a copy, if the residual stream has 16 bits), and, where
    its own weight is trained, that input normalised; each trained or adapted linear layer keeps its
    input (shared, unless dropout or a cast makes one for each, dropout with a mask of a byte) and
    the rank-sized middle; attention keeps queries, keys, values and its output, keys and values
    copied to the width of the queries unless flash attention runs, and in eager form the softmax in
    float32 and in the residual stream's dtype; the MLP keeps the gate, its activation and the up
    projection. Found with the X-ray, storage by storage.
    """
    s, p, a = setup.element_bytes, setup.product_bytes, setup.attention_bytes
    width, query, key = architecture.hidden, architecture.query_width, architecture.key_width
    inner, lora = architecture.intermediate, setup.method != "full"
    # An adapter's input: autocast makes it 16 bits, else it has the dtype of the adapter.
    x = 2 if setup.mixed else BYTES[setup.adapter_dtype] if lora else s
    # PEFT's layer on an unquantised base casts the input to the adapter's dtype even under autocast
    # (peft 0.20, tuners/lora/layer.py; its 4-bit layer does not).
    twice = setup.method == "lora" and setup.mixed and BYTES[setup.adapter_dtype] != s

    def inputs(size, held, *names):
        """Bytes of the inputs that these modules keep, if trained; `held`: bytes of an element."""
        adapted = len([name for name in names if name in setup.targets or not lora])
        if setup.dropout and lora:
            return (x + 1) * size * adapted
        return x * size * (min(adapted, 1) if x == held and not twice else adapted)

    norm = 4 * width
    trained_norm = 0 if lora else (4 if architecture.gemma else s) * width
    attention = norm + trained_norm + inputs(width, s, "q_proj", "k_proj", "v_proj")
    if s == 4:
        attention -= norm  # this norm's input is the checkpoint itself
    if architecture.gemma or architecture.model_type == "qwen3":
        attention += 4 * (query + key)  # norms of queries and keys
        if not lora:
            attention += (4 if architecture.gemma else p) * (query + key)
    attention += 2 * a * query  # the queries, and attention's output
    attention += 2 * a * (key if grouped(architecture, setup, gpu) else query)
    if (setup.dropout and lora) or x != a or twice:
        attention += inputs(query, a, "o_proj")  # else it is attention's output
    if setup.attention == "sdpa" and sliding(architecture, setup):
        attention += a * setup.seq  # the window's mask, as numbers to add to the scores
    mlp = norm + trained_norm + inputs(width, s, "gate_proj", "up_proj") + 3 * p * inner
    last = inputs(inner, p, "down_proj")
    if architecture.gemma:
        attention += norm + trained_norm
        last += norm + trained_norm
    if lora:
        mlp += setup.rank * len(set(setup.targets) & set(LINEARS)) * x
    # Without autocast an adapter computes in its own dtype: the largest output, there twice, while
    # the layer holds its input, the norm's output and the sum.
    own = x != s and not setup.mixed and "up_proj" in setup.targets
    adapted = 2 * x * inner + 5 * s * width if own else 0
    if twice and "down_proj" in setup.targets:
        # down_proj's input has a gradient from the base, and one in 16, 32 and again 16 bits.
        adapted = (2 * s + 6) * inner + s * width
    if setup.mixed and s == 4 and setup.dropout and "down_proj" in setup.targets:
        adapted = 14 * inner  # the same behind a dropout in float32, and the gradient before that
    cells = architecture.heads * setup.seq if setup.attention == "eager" else 0
    return Layer(
        attention=attention,
        mlp=mlp,
        scores=cells * (4 if a == 4 else 6),
        last=last,
        product=max(3 * p * inner, adapted),
        norm=last + 5 * norm + s * width if architecture.gemma else 0,
        down=p * inner * (2 if last >= x * inner else 1),
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
    return gpu.flash and setup.attention_bytes == 2

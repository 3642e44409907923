"""What of a training step is there all the time: weights, their constants, optimizer states."""


def weights(architecture, setup):
    """The bytes of the base by term, exact to the byte against a model loaded by bitsandbytes.

    Each linear layer holds half a byte a weight and one float32 for every block of 64. With double
    quantisation that is one byte for every block and a float32 for every 256 blocks (QLoRA, section
    3), and besides a table of 256 float32 and an offset. The 16 levels are kept once a layer.
    """
    other = architecture.other_parameters() * setup.element_bytes
    if setup.method != "qlora":
        return {
            "quantised weights": 0,
            "quantisation constants": 0,
            "unquantised weights": other + architecture.linear_parameters() * setup.element_bytes,
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
    shapes, linears = [], architecture.linears()
    outside = (architecture.vocabulary, architecture.hidden)
    for name in setup.targets:
        many = architecture.layers if name in linears else 1
        shapes += [(many, setup.rank * size) for size in linears.get(name, outside)]
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

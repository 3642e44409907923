"""The exercises of notebook 03."""

import torch

from qlora_kit import nf4
from qlora_kit.exercises import Exercise, call, close, number


def _backward(answer):
    generator = torch.Generator().manual_seed(3)
    for shape in ((8, 8), (6, 10)):  # where both orders fit, the transpose can be told
        weight = nf4.quantize(torch.randn(shape, generator=generator))
        gradient = torch.randn(5, shape[0], generator=generator)
        dense = weight.dequantize()
        given = call(answer, gradient, weight)
        if isinstance(given, tuple):
            return "return the gradient of x alone, without the None for the weight."
        given = torch.as_tensor(given)
        if given.shape == shape:
            return "that has the shape of the weight. The weight is frozen: x needs a gradient."
        if given.shape == (5, shape[1]) and torch.allclose(given, gradient @ dense, atol=1e-5):
            continue
        if given.shape == (5, 8) and torch.allclose(given, gradient @ dense.T, atol=1e-5):
            return "forward multiplies by the transpose; backward takes the weight as it is."
        if given.shape != (5, shape[1]):
            return (
                f"x is {[5, shape[1]]} here, and so is its gradient; yours is {list(given.shape)}."
            )
        return "the shape is right, the numbers are not: multiply by the dequantised weight."


backward = Exercise(
    _backward,
    why="y = x W^T, so what arrives at y goes back to x through W. "
    "The weight is dequantised here a second time.",
    hint="gradient is [n, out] and the dequantised weight [out, in]; the gradient of x must be "
    "[n, in]. Only one order of the two fits.",
    solution="""\
def answer(gradient, weight):
    return gradient @ weight.dequantize()""",
)


def _layer_bytes(answer):
    shapes = ((8, 8, 2), (576, 576, 16), (192, 576, 8))
    given = [number(call(answer, *shape)) for shape in shapes]
    for formula, misconception in (
        (lambda o, i, r: o * i / 2 + 4 * r * (o + i), "each block of 64 weights has a scale too."),
        (lambda o, i, r: o * i * 4.5 / 8, "that is the base alone; add the adapter."),
        (lambda o, i, r: o * i * 4.5 / 8 + 2 * r * (o + i), "that adapter has 16 bits a number."),
        (lambda o, i, r: o * i * 4.5 / 8 + r * (o + i), "a float32 number has four bytes."),
        (lambda o, i, r: (o * i + r * (o + i)) * 4.5 / 8, "the adapter is not kept in 4 bits."),
        (lambda o, i, r: o * i * 4.5 + 32 * r * (o + i), "that is in bits."),
        (lambda o, i, r: (o * i * 4.5 / 8 + 4 * r * (o + i)) / 1024, "that is in KB."),
        (lambda o, i, r: o * i * 4.5 / 8 + 4 * r * o * i, "A has r x in numbers, B has out x r."),
    ):
        if close(given, [formula(*shape) for shape in shapes]):
            return misconception
    if not close(given, [o * i * 4.5 / 8 + 4 * r * (o + i) for o, i, r in shapes]):
        return "add up three things: codes, scales, and the numbers of A and B."


layer_bytes = Exercise(
    _layer_bytes,
    why="Half a byte for each weight, four bytes for each 64 of them and for each number of A, B.",
    hint="A code has half a byte, a scale four bytes for 64 weights. A is rank x in_features, "
    "B is out_features x rank, with four bytes a number.",
    solution="""\
def answer(out_features, in_features, rank):
    weights = out_features * in_features
    adapter = rank * (in_features + out_features)
    return weights / 2 + 4 * weights / 64 + 4 * adapter""",
)


def _few_inputs(answer):
    given = number(answer)
    for value, misconception in (
        (576, "that undoes the error in the weights. Only what reaches the outputs has to go."),
        (1, "rank 1 repairs one direction of x, and there are three."),
        (2, "rank 2 repairs two directions of x, and there are three."),
        (16, "a smaller rank is enough: how many directions can x have here?"),
        (0, "the error still reaches the outputs, by way of three directions of x."),
    ):
        if given == value:
            return misconception
    if given != 3:
        return "count the directions that x can have. The adapter needs one rank for each."


few_inputs = Exercise(
    _few_inputs,
    why="With A spanning the three vectors, B sets what each of them is turned into. "
    "What E does to any other direction never happens.",
    hint="E x must go for each x = a u + b v + c w. It is enough that E u, E v and E w go.",
    solution="""\
vectors = 3  # u, v and w
answer = vectors""",
)

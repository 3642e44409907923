"""The exercises of notebook 02."""

import torch

from qlora_kit import nf4
from qlora_kit.exercises import Exercise, call


def _same(answer, right):
    given, right = (torch.as_tensor(x, dtype=torch.float32) for x in (answer, right))
    return given.shape == right.shape and torch.allclose(given, right, atol=5e-4)


def _one_weight(answer):
    for value, misconception in (
        (11, "that is the code. The weight is the code's level, times absmax."),
        (0.3379, "that is the level. It stands for a fraction of absmax; multiply the two."),
        (0.1609, "first divide 0.16 by absmax; afterwards multiply the level by it."),
        (0.0805, "divide 0.16 by absmax before you look for the nearest level."),
        (0.1231, "that is the next lower level; take the nearest one."),
        (0.32, "that is the scaled weight; now find its level, and multiply by absmax."),
        (0.16, "the weight itself is not a level times absmax, so it cannot come back."),
    ):
        if _same(answer, value):
            return misconception
    if not _same(answer, 0.5 * nf4.CODEBOOK[11].item()):
        return "scale the weight, find the nearest level, and multiply it by absmax."


one_weight = Exercise(
    _one_weight,
    why="0.16 / 0.5 is 0.32, the nearest level is 0.3379 (code 11), and 0.3379 * 0.5 is 0.1690.",
    hint="Three steps: divide by absmax, take the nearest level, multiply by absmax.",
    solution="""\
scaled = 0.16 / 0.5
level = 0.3379  # the nearest to 0.32 in the table of levels
answer = level * 0.5""",
)


def _unpack(answer):
    codes = torch.tensor([7, 12, 0, 15, 3, 3, 9, 1], dtype=torch.uint8)
    packed = codes[0::2] << 4 | codes[1::2]
    given = torch.as_tensor(call(answer, packed)).long()
    first, second = codes[0::2].long(), codes[1::2].long()
    if given.shape != codes.shape:
        return f"{len(packed)} bytes hold {len(codes)} codes; yours have shape {list(given.shape)}."
    if torch.equal(given, torch.stack([second, first], dim=1).flatten()):
        return "the first code of a pair is in the upper four bits, not in the lower ones."
    if torch.equal(given, torch.cat([first, second])):
        return "the codes are right but not in order: the two of each byte belong side by side."
    if given.max() > 15:
        return "a code is at most 15: shift the upper four bits down, and mask the lower four."
    if not torch.equal(given, codes.long()):
        return "the codes differ from those that were packed."


unpack = Exercise(
    _unpack,
    why="A shift brings the upper four bits down, and a mask of four ones (15) keeps the lower.",
    hint="`packed >> 4` is the first code of each byte, `packed & 15` the second; "
    "`torch.stack` can put them side by side.",
    solution="""\
def answer(packed):
    return torch.stack([packed >> 4, packed & 15], dim=1).flatten()""",
)


def _three_bits(answer):
    given = torch.as_tensor(answer, dtype=torch.float32)
    if given.shape != (8,):
        return f"three bits make eight codes; your levels have shape {list(given.shape)}."
    if _same(given.flip(0), _NF3):
        return "the levels are right; put them in ascending order."
    if not given.max() <= 1.0001:
        return "divide by the largest level, so that the scale of a block fits."
    if not (given == 0).any():
        return "zero is missing: it is a level of its own, with 3 levels below and 4 above."
    if _same(given, _WRONG_END):
        return "the outermost probability is still that of sixteen levels; put in 8 and 7."
    if _same(given, [-level for level in reversed(_NF3)]):
        return "four levels lie above zero and three below, not the other way round."
    if not _same(given, _NF3):
        return "take 4 equal steps above one half and 3 below, then the quantile function."


def _levels_of_three_bits(end):
    above = torch.linspace(end, 0.5, 5)[:-1]
    below = torch.linspace(end, 0.5, 4)[:-1]
    quantile = torch.special.ndtri
    levels = torch.cat([-quantile(below), torch.zeros(1), quantile(above).flip(0)])
    return (levels / levels.max()).tolist()


_NF3 = _levels_of_three_bits(1 - (1 / 16 + 1 / 14) / 2)
_WRONG_END = _levels_of_three_bits(1 - (1 / 32 + 1 / 30) / 2)

three_bits = Exercise(
    _three_bits,
    why="The recipe has one number in it, the count of the levels.",
    hint="Copy the cell that builds the sixteen levels. 16 and 15 levels become 8 and 7, "
    "so 32 and 30 become 16 and 14, and the 9 and 8 of linspace become 5 and 4.",
    solution="""\
end = 1 - (1 / 16 + 1 / 14) / 2
above = torch.linspace(end, 0.5, 5)[:-1]
below = torch.linspace(end, 0.5, 4)[:-1]
quantile = torch.special.ndtri
answer = torch.cat([-quantile(below), torch.zeros(1), quantile(above).flip(0)])
answer = answer / answer.max()""",
)


def _bits(answer):
    sizes = (64, 128, 32)
    given = [float(call(answer, size)) for size in sizes]
    for formula, misconception in (
        (lambda size: 4, "each block has a scale as well, and the scale has bits."),
        (
            lambda size: 4 + 32 / size,
            "that is without double quantisation: a scale takes 8.",
        ),
        (lambda size: 4 + 8 / size, "the scales have scales: a float32 for 256 of them."),
        (
            lambda size: 4 + 8 / size + 32 / 256,
            "256 scales share 32 bits: how many weights?",
        ),
        (
            lambda size: (4 + 8 / size + 32 / (256 * size)) / 8,
            "that is in bytes.",
        ),
        (lambda size: 4 + 8 / 64 + 32 / (256 * 64), "the answer depends on the block size."),
    ):
        if _same(given, [float(formula(size)) for size in sizes]):
            return misconception
    if not _same(given, [4 + 8 / size + 32 / (256 * size) for size in sizes]):
        return "add up the bits of a code, of a scale and of a scale's scale, each for one weight."


bits = Exercise(
    _bits,
    why="4 for the code, 8 for each block, 32 for each 256 blocks.",
    hint="A block of `size` weights shares 8 bits. How many weights share the 32 bits of the "
    "second level?",
    solution="""\
def answer(size):
    return 4 + 8 / size + 32 / (256 * size)""",
)

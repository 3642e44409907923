"""Exercises of notebook 01, a rank-1 adapter by hand."""

import torch

from qlora_kit.exercises import Exercise, call


def _random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _same(a, b):
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4)


INPUTS, OUTPUTS, RANK = 1536, 576, 8


def _parameters(answer):
    if answer == RANK * (INPUTS + OUTPUTS):
        return None
    if answer == INPUTS * OUTPUTS:
        return "that is W, all of it; W is frozen."
    if answer == INPUTS * OUTPUTS + RANK * (INPUTS + OUTPUTS):
        return "W is frozen; count A and B alone."
    if answer in (RANK * INPUTS, RANK * OUTPUTS):
        return "that is one of the two; A and B are both trained."
    if answer == RANK * INPUTS * OUTPUTS:
        return "A and B stand beside each other; their numbers add up, they do not multiply."
    if answer == RANK * RANK:
        return "A meets the whole input and B the whole output; only between them is it narrow."
    return "count the cells of A, which is r x in, and those of B, which is out x r."


parameters = Exercise(
    _parameters,
    why="A is 8 x 1536 and B is 576 x 8: together 16,896, beside 884,736 in W.",
    hint="Draw A as a flat matrix and B as a tall one. How many cells has each?",
    solution="answer = 8 * 1536 + 576 * 8",
)


def _forward(answer):
    x, W = _random(5, 4, seed=1), _random(4, 4, seed=2)
    A, B, alpha, r = _random(2, 4, seed=3), _random(4, 2, seed=4), 6, 2
    y = call(answer, x, W, A, B, alpha)
    if not isinstance(y, torch.Tensor) or y.shape != x.shape:
        return "the result must be a tensor with a row of outputs for every row of x."
    base, detour = x @ W.T, x @ A.T @ B.T
    if _same(y, base + alpha / r * detour):
        return None
    known = {
        "it is the base alone: the detour is missing.": base,
        "it is the detour alone: add it to what W gives.": alpha / r * detour,
        "the scaling is missing: alpha / r.": base + detour,
        "the scaling is alpha divided by r, and r is the number of rows of A.": base
        + alpha * detour,
        "the detour was multiplied by r instead of divided.": base + alpha * r * detour,
        "x @ W is another layer: with x in rows, PyTorch's weight needs W.T.": x @ W
        + alpha / r * detour,
        "the scaling belongs to the detour alone, W keeps its own size.": alpha / r * base
        + alpha / r * detour,
    }
    for what, wrong in known.items():
        if _same(y, wrong):
            return what
    return "the numbers differ from W x + alpha / r * B A x; look at the transposes."


forward = Exercise(
    _forward,
    why="W and the detour see the same x, and only the detour is scaled.",
    hint="With x in rows every matrix of the formula is transposed: W x becomes x @ W.T.",
    solution="""def answer(x, W, A, B, alpha):
    return x @ W.T + alpha / A.shape[0] * (x @ A.T @ B.T)""",
)


def _smallest_rank(answer):
    matrices = [
        torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5])),
        _random(6, 9, seed=5),
        _random(8, 1, seed=6) @ _random(1, 5, seed=7),
    ]
    for matrix in matrices:
        values = torch.linalg.svdvals(matrix)
        for proportion in (0.5, 0.7, 0.9):
            given = call(answer, matrix, proportion)
            right, plain = _held(values.square(), proportion), _held(values, proportion)
            if given == right:
                continue
            if given == right - 1:
                return "one too few: a position counts from 0, a rank from 1."
            if given == plain:
                return "square the singular values first: the proportion is of the squared size."
            rows, columns = matrix.shape
            return f"a {rows} x {columns} matrix needs rank {right} for {proportion}, not {given}."
    return None


def _held(sizes, proportion):
    """The smallest number of leading `sizes` that make up `proportion` of their sum."""
    return int((sizes.cumsum(0) / sizes.sum() < proportion).sum()) + 1


smallest_rank = Exercise(
    _smallest_rank,
    why="The best approximation of rank r keeps the r largest singular values and no others.",
    hint="torch.linalg.svdvals gives them largest first; cumsum adds squares up from the left.",
    solution="""def answer(matrix, proportion):
    squares = torch.linalg.svdvals(matrix).square()
    kept = squares.cumsum(0) / squares.sum()
    return int((kept < proportion).sum()) + 1""",
)


def _alpha(answer):
    if answer == 8:
        return None
    if answer == 64:
        return "with 64 / sqrt(64) the scaling is 8, eight times what it was."
    if answer == 16:
        return "the same alpha gives 16 / sqrt(64) = 2, not 1."
    if answer == 4:
        return "4 keeps alpha / sqrt(r) at sqrt(r) of the old rank; the old rule was alpha / r."
    return "the old scaling is 16 / 16 = 1; find alpha with alpha / sqrt(64) = 1."


alpha = Exercise(
    _alpha,
    why="8 / sqrt(64) = 1 = 16 / 16.",
    hint="Write down the scaling before the change. It must be the same after it.",
    solution="answer = 16 / 16 * math.sqrt(64)",
)

"""The exercises of appendix a1."""

from qlora_kit.exercises import Exercise, number


def _half_step(answer):
    given = number(answer)
    for value, misconception in (
        (2**-9, "that is the distance to the next number; from half of it on, rounding goes up."),
        (2**-7, "that is the distance at 1. It halves each time that the weight halves."),
        (2**-8, "that is right for a weight at 1; this one is smaller."),
        (2**-12, "that is float16's."),
        (2**-13, "that is float16's."),
        (2**-25, "that is float32's."),
        (2**-26, "that is float32's."),
        (
            0.375 * 2**-8,
            "the distance is the same everywhere between 0.25 and 0.5: no fraction of it.",
        ),
        (
            0.375 * 2**-7,
            "the distance is the same everywhere between 0.25 and 0.5: no fraction of it.",
        ),
    ):
        if abs(given - value) <= 0.01 * value:
            return misconception
    if not abs(given - 2**-10) <= 0.01 * 2**-10:
        return "between 0.25 and 0.5 bfloat16 has 128 numbers. How far apart are they?"


half_step = Exercise(
    _half_step,
    why="Between 0.25 and 0.5 the numbers of bfloat16 are 0.25 / 128 apart. Less than half of that "
    "is rounded away.",
    hint="bfloat16 has 128 numbers between 0.25 and 0.5. An update is rounded to the nearest.",
    solution="""\
distance = 0.25 / 128
answer = distance / 2""",
)


def _loss_scale(answer):
    given = number(answer)
    for value, misconception in (
        (32, "times 32 it is exactly half of the smallest number, and that is rounded to zero."),
        (1024, "with that it arrives, but a smaller scale is enough."),
        (128, "with that it arrives, but a smaller scale is enough."),
        (2**16, "with that it keeps all its digits; to be above zero, less is enough."),
        (6, "that is the exponent; the scale is two to the power of it."),
        (2**-24, "that is where it must arrive. What takes it there from 2**-30?"),
        (1, "without a scale it is zero: 2**-30 is far below half of 2**-24."),
    ):
        if given == value:
            return misconception
    if given != 64:
        return "2**-30 times the scale must be more than 2**-25."


loss_scale = Exercise(
    _loss_scale,
    why="2**-30 times 2**6 is 2**-24, the smallest number above zero. The kit takes 1,024, since "
    "many gradients are smaller still.",
    hint="Which power of two takes 2**-30 to more than 2**-25? Exactly 2**-25 is not enough.",
    solution="""\
arrives = 2.0**-24
answer = arrives / 2.0**-30""",
)

"""The exercises of notebook 04."""

from qlora_kit.exercises import Exercise, call, close, number


def _full_training(answer):
    given = number(answer)
    for value, misconception in (
        (36, "that is without a float32 copy of the weights; here one is kept."),
        (6, "those are the weights in 16 bits alone."),
        (12, "those are the weights in float32 alone, or their copy."),
        (24, "that is 16 bits throughout, or Adam's states alone."),
        (30, "the gradients and both of Adam's means are needed, and weights twice."),
        (42, "count the weights twice: in 16 bits, and their float32 copy."),
        (16, "that is for each parameter, in bytes. There are 3 billion of them."),
        (48e9, "that is in bytes. A GB has 10⁹ of them."),
        (44.7, "that is in GiB."),
    ):
        if abs(given - value) <= 0.002 * value:
            return misconception
    if not abs(given - 48) <= 0.1:
        return "look up the row in the table above, and add its three figures."


full_training = Exercise(
    _full_training,
    why="2 + 4 bytes of weights, 2 of gradients, 8 of Adam: 16 bytes, 3 billion times.",
    hint="The row of the table above is called 'mixed, with a float32 copy'. How many bytes for "
    "each parameter, and how many parameters?",
    solution="""\
each = (2 + 4) + 2 + (4 + 4)
answer = each * 3e9 / 1e9""",
)


def _whole_model(answer):
    models = ((697_761_792, 302_124_160), (6_476_005_376, 262_410_240))
    given = [number(call(answer, *parameters)) for parameters in models]
    for formula, misconception in (
        (lambda a, b: (a + b) * 4.127 / 8, "the embedding and the norms stay in 16 bits."),
        (lambda a, b: (a + b) / 2, "that is 4 bits for everything, without constants."),
        (lambda a, b: a / 2 + 2 * b, "the quantisation constants are missing: 4.127 bits."),
        (lambda a, b: a * 4.5 / 8 + 2 * b, "that is without double quantisation."),
        (lambda a, b: a * 4.127 / 8 + 4 * b, "16 bits are two bytes."),
        (lambda a, b: a * 4.127 / 8 + 16 * b, "16 bits are two bytes."),
        (lambda a, b: a * 4.127 + 16 * b, "that is in bits."),
        (lambda a, b: a * 4.127 / 8, "the parameters that are not quantised are missing."),
        (lambda a, b: a * 4.127 + 2 * b, "4.127 bits are not 4.127 bytes."),
    ):
        if close(given, [formula(*parameters) for parameters in models], rel=1e-3):
            return misconception
    if not close(given, [a * 4.127 / 8 + 2 * b for a, b in models], rel=1e-3):
        return "add two products: bits of the one kind over eight, bytes of the other."


whole_model = Exercise(
    _whole_model,
    why="The second product is why Gemma 3 1B gains so little.",
    hint="A byte has 8 bits. 4.127 bits for each of the one kind, 16 bits for each of the other.",
    solution="""\
def answer(linear, other):
    return linear * 4.127 / 8 + other * 2""",
)


def _logits(answer):
    shapes = ((4, 2048, 262_144), (1, 512, 32_000))
    given = [number(call(answer, *shape)) for shape in shapes]
    for formula, misconception in (
        (lambda b, s, v: b * s * v, "that counts the numbers. Each has four bytes."),
        (lambda b, s, v: 2 * b * s * v, "float32 has four bytes, not two."),
        (lambda b, s, v: 32 * b * s * v, "that is in bits."),
        (lambda b, s, v: 4 * s * v, "each row of the batch has logits of its own."),
        (lambda b, s, v: 4 * b * v, "each token of a row has logits of its own."),
        (lambda b, s, v: 4 * b * s, "each token has a score for every word of the vocabulary."),
        (lambda b, s, v: 4 * b * s * v / 2**30, "that is in GiB."),
        (lambda b, s, v: 16 * b * s * v, "that is four copies; one was asked for."),
    ):
        if close(given, [formula(*shape) for shape in shapes], rel=1e-3):
            return misconception
    if not close(given, [4 * b * s * v for b, s, v in shapes], rel=1e-3):
        return "how many tokens, how many scores for each, how many bytes for each score?"


logits = Exercise(
    _logits,
    why="With Gemma's vocabulary that is a MiB for each token.",
    hint="Every token of every row has one score for each word of the vocabulary.",
    solution="""\
def answer(batch, sequence, vocabulary):
    return batch * sequence * vocabulary * 4""",
)

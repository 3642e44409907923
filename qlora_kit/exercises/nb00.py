"""The exercises of notebook 00."""

from qlora_kit.doctor.findings import Finding
from qlora_kit.exercises import Exercise, call, number


def _gigabytes(answer):
    given = number(answer)
    for value, misconception in (
        (112, "16 bits are 2 bytes, not 16."),
        (28, "that is in 32 bits."),
        (7, "that is one byte each. 16 bits are two."),
        (3.5, "that is in 4 bits, which is where this path leads."),
        (14e9, "that is in bytes. A GB has 10⁹ of them."),
        (2, "that is for one parameter, in bytes. There are 7 billion."),
    ):
        if given == value:
            return misconception
    if not abs(given - 14) <= 0.001:
        return "multiply the parameters by the bytes of each, and divide by 10⁹."


gigabytes = Exercise(
    _gigabytes,
    why="In 4 bits it is a quarter of that, and a small GPU has room for it.",
    hint="A byte has 8 bits. How many bytes does each parameter take?",
    solution="""\
answer = 7e9 * 16 / 8 / 1e9""",
)


def _to_mend(answer):
    card = [
        Finding("ok", "Python"),
        Finding("warning", "memory", "why", "fix"),
        Finding("ok", "disk"),
        Finding("error", "packages", "why", "fix"),
    ]
    titles = {
        found: [f.title for f in card if f.level in found]
        for found in (("ok",), ("warning",), ("error",), ("ok", "warning", "error"))
    }
    given = list(call(answer, card))
    for levels, misconception in (
        (("ok",), "those are the lines where all is well."),
        (("warning",), "an ERROR has to be fixed as well."),
        (("error",), "a WARNING is worth reading as well."),
        (("ok", "warning", "error"), "leave out the lines whose level is 'ok'."),
    ):
        if given == titles[levels]:
            return misconception
    if given and all(isinstance(item, Finding) for item in given):
        return "the titles are asked for, not the findings: found.title."
    if given != ["memory", "packages"]:
        return "the titles of the findings whose level is not 'ok', in their order."


to_mend = Exercise(
    _to_mend,
    why="An empty list means that all is well.",
    hint="Go through the findings one by one; each has a level and a title.",
    solution="""\
def answer(findings):
    return [found.title for found in findings if found.level != "ok"]""",
)

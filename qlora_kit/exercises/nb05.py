"""The exercises of notebook 05."""

import torch

from qlora_kit.exercises import Exercise, call, number


def _pick(given, misconceptions):
    """The sentence that belongs to a wrong number, which may be rounded, or None."""
    for value, sentence in misconceptions.items():
        if abs(given - value) <= 1e-3 * abs(value):
            return sentence


def _two_targets(answer):
    given = number(answer)
    misconception = _pick(
        given,
        {
            8 * 2 * 4096: "that is one module in one layer.",
            2 * 8 * 2 * 4096: "that is one layer; there are 32.",
            32 * 2 * 8 * 4096: "that is half of it: two modules in a layer, and each has A and B.",
            32 * 7 * 8 * 2 * 4096: "only q_proj and v_proj are named, two modules in each layer.",
            32 * 2 * 4096 * 4096: "those are the frozen weights. The adapter is thin.",
            32 * 2 * 8 * 4096 * 4096: "r (in + out) is meant, not r x in x out.",
        },
    )
    if misconception:
        return misconception
    if given != 32 * 2 * 8 * (4096 + 4096):
        return "r (in + out) for a module, times two modules, times 32 layers."


two_targets = Exercise(
    _two_targets,
    why="8 * (4096 + 4096) for a module, two of them in each of 32 layers.",
    hint="Each module gets r * (in + out) numbers. How many modules are there?",
    solution="""\
module = 8 * (4096 + 4096)
answer = 32 * 2 * module""",
)


def _prepared_bytes(answer):
    given = number(answer)
    words = 262_144 * 1_152
    misconception = _pick(
        given,
        {
            words: "that is the number of weights. How many bytes more does each take?",
            4 * words: "that is what it has afterwards. It had something before.",
            3.5 * words: "it was not in 4 bits before: the embedding is never quantised.",
            -2 * words: "float32 takes more than bfloat16, not less.",
            2 * words / 2**20: "that is in MiB.",
            2 * words / 1e6: "that is in megabytes.",
            2 * words / 2**30: "that is in GiB.",
            2 * words / 1e9: "that is in gigabytes.",
        },
    )
    if misconception:
        return misconception
    if given != 2 * words:
        return "rows times columns, times the two bytes that each weight gets."


prepared_bytes = Exercise(
    _prepared_bytes,
    why="Each of 301,989,888 weights goes from 2 bytes to 4: over 600 million bytes, more than "
    "all of the model's 4-bit weights take.",
    hint="How many weights does the table have, and how many bytes more does each of them take?",
    solution="""\
weights = 262_144 * 1_152
answer = weights * (4 - 2)""",
)


def _cut(answer):
    cases = (
        ([5, 8, 2, 1, 9, 2], {2}),
        ([7, 0, 4, 2], {0, 2}),
        ([3, 6, 4], {0, 2}),
        ([2, 3], {2}),
    )
    for tokens, stops in cases:
        given = torch.as_tensor(call(answer, list(tokens), set(stops))).tolist()
        first = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
        last = max((i for i, token in enumerate(tokens) if token in stops), default=len(tokens))
        if given == tokens[:first]:
            continue
        for value, misconception in (
            (tokens[: first + 1], "the stop itself does not belong to the answer."),
            (tokens[:last], "end at the first stop, not at the last."),
            (tokens, "nothing was cut off."),
            (
                [t for t in tokens if t not in stops],
                "all that follows the first stop goes as well.",
            ),
            ([], "an answer without a stop is kept whole."),
        ):
            if given == value:
                return misconception
        return f"for {tokens} and the stops {sorted(stops)}, {tokens[:first]} is wanted."


cut = Exercise(
    _cut,
    why="Generation does the same: it ends at the first token that is in eos_token_id, whichever.",
    hint="Go through the tokens, and return what came before as soon as one is in `stops`.",
    solution="""\
def answer(tokens, stops):
    kept = []
    for token in tokens:
        if token in stops:
            break
        kept.append(token)
    return kept""",
)

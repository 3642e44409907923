"""Right and wrong answers to the exercises of notebook 05, for test_exercises.py."""

import itertools

import torch

WORDS = 262_144 * 1_152

ANSWERS = {
    "two_targets": {
        "right": [4_194_304, torch.tensor(4_194_304)],
        "wrong": [
            (65_536, "one layer"),
            (131_072, "there are 32"),
            (2_097_152, "half of it"),
            (14_680_064, "only q_proj and v_proj"),
            (2**30, "frozen"),
            (2**33, "in + out"),
            (8_388_608, "times two modules"),
        ],
    },
    "prepared_bytes": {
        "right": [2 * WORDS, 603_979_776.0, torch.tensor(2 * WORDS)],
        "wrong": [
            (WORDS, "number of weights"),
            (4 * WORDS, "afterwards"),
            (3.5 * WORDS, "never quantised"),
            (576.0, "in MiB"),
            (603.979776, "in megabytes"),
            (5, "rows times columns"),
        ],
    },
    "cut": {
        "right": [
            lambda tokens, stops: list(itertools.takewhile(lambda t: t not in stops, tokens)),
            lambda tokens, stops: torch.tensor(
                list(itertools.takewhile(lambda t: t not in stops, tokens))
            ),
        ],
        "wrong": [
            (lambda tokens, stops: tokens[: tokens.index(2) + 1], "itself"),
            (lambda tokens, stops: [t for t in tokens if t not in stops], "follows"),
            (lambda tokens, stops: tokens, "nothing was cut"),
            (lambda tokens, stops: tokens[:-1], "not at the last"),
            (lambda tokens, stops: tokens[: min(map(tokens.index, stops))], "raised ValueError"),
            (lambda tokens, stops: [1], "is wanted"),
        ],
    },
}

"""Right and wrong answers to the exercises of notebook 06."""

ANSWERS = {
    "labels": {
        "right": [lambda tokens, n: [-100 if i < n else t for i, t in enumerate(tokens)]],
        "wrong": [
            (lambda tokens, n: tokens, "write tickets"),
            (lambda tokens, n: tokens[:n] + [-100] * (len(tokens) - n), "other way round"),
            (lambda tokens, n: [-100] * n + tokens[n:-1] + [-100], "stop token"),
            (lambda tokens, n: [-100] * n + tokens[n + 1 :] + [-100], "shift"),
            (lambda tokens, n: [0] * n + tokens[n:], "-100"),
            (lambda tokens, n: tokens[n:], "8 labels"),
            (lambda tokens, n: [-100] * len(tokens), "the tokens themselves"),
        ],
    },
    "steps": {
        "right": [63, 63.0],
        "wrong": [
            (500, "share a step"),
            (125, "accumulation"),
            (250, "4 x 2"),
            (62, "smaller"),
            (62.5, "half a step"),
            (126, "one epoch"),
            (8, "round up"),
        ],
    },
    "accuracy": {
        "right": [
            lambda given, wanted: (
                sum(a.split(",")[0] == b for a, b in zip(given, wanted, strict=True)) / len(wanted)
            )
        ],
        "wrong": [
            (
                lambda given, wanted: sum(b in a for a, b in zip(given, wanted, strict=True)) / 4,
                "contain",
            ),
            (
                lambda given, wanted: sum(a == b for a, b in zip(given, wanted, strict=True)) / 4,
                "comma",
            ),
            (lambda given, wanted: 2, "divide"),
            (lambda given, wanted: 50.0, "between 0 and 1"),
            (lambda given, wanted: 0.75, "whole words"),
            (lambda given, wanted: 0.25, "a half"),
        ],
    },
}

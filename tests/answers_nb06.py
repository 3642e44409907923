"""Right and wrong answers to the exercises of notebook 06."""

ODD = [
    (["good"], "there are 1"),
    ("good", "list"),
    ([1, 2, 3, 4], "list"),
    ([..., "good", "good", "good"], "list"),
    (["fine", "fine", "fine", "fine"], "none of the words"),
]


def with_one_wrong(right, place, word):
    return [word if i == place else other for i, other in enumerate(right)]


def each(right, sentences):
    """One wrong answer for each wrong word at each place."""
    return [
        (with_one_wrong(right, place, word), sentence)
        for (place, word), sentence in sentences.items()
    ]


CURVES = ["few rows", "too small", "good", "too large"]
MASKS = ["never ends", "writes tickets", "guesses", "right"]
MEMORY = ["same", "double", "double", "less", "more"]
CONCLUDE = ["better", "not settled", "not settled", "worse"]

ANSWERS = {
    "curves": {
        "right": [CURVES, tuple(CURVES), ["Few  rows", "TOO SMALL", " good", "too large "]],
        "wrong": ODD
        + each(
            CURVES,
            {
                (0, "good"): "by heart",
                (0, "too small"): "early on",
                (0, "too large"): "new rows",
                (1, "good"): "still falling",
                (1, "too large"): "smoothly",
                (1, "few rows"): "near zero",
                (2, "too small"): "stopped falling",
                (2, "too large"): "smoothly",
                (2, "few rows"): "does not turn",
                (3, "good"): "eight categories",
                (3, "too small"): "jumping",
                (3, "few rows"): "not even",
            },
        ),
    },
    "masks": {
        "right": [MASKS],
        "wrong": ODD[:4]
        + each(
            MASKS,
            {
                (0, "right"): "never taught",
                (0, "writes tickets"): "other end",
                (0, "guesses"): "other end",
                (1, "right"): "writing tickets",
                (1, "never ends"): "what else",
                (1, "guesses"): "stands before",
                (2, "right"): "grey",
                (2, "never ends"): "answers begin",
                (2, "writes tickets"): "answers begin",
                (3, "never ends"): "customer's turn",
                (3, "writes tickets"): "no piece",
                (3, "guesses"): "part of the prompt",
            },
        ),
    },
    "foresee": {
        "right": [MEMORY],
        "wrong": [
            *ODD[:4],
            *each(
                MEMORY,
                {
                    (0, "more"): "Adam's states",
                    (0, "double"): "Adam's states",
                    (1, "same"): "weights do not grow",
                    (1, "more"): "doubles",
                    (2, "same"): "each token",
                    (2, "more"): "doubles",
                    (3, "same"): "not memory",
                    (3, "more"): "not besides",
                    (4, "less"): "the weights go",
                    (4, "same"): "the weights go",
                    (4, "double"): "small part",
                },
            ),
        ],
    },
    "conclude": {
        "right": [CONCLUDE],
        "wrong": ODD[:4]
        + each(
            CONCLUDE,
            {
                (0, "not settled"): "less than 5 %",
                (0, "worse"): "12 times",
                (1, "better"): "may be luck",
                (2, "better"): "25.0%",
                (2, "worse"): "may be luck",
                (3, "better"): "20 times",
                (3, "not settled"): "less than 5 %",
            },
        ),
    },
}

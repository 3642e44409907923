"""Right and wrong answers to the exercises of notebook 00, for test_exercises.py."""

import torch

ANSWERS = {
    "gigabytes": {
        "right": [14, 14.0, torch.tensor(7 * 2)],
        "wrong": [
            (112, "not 16"),
            (28, "32 bits"),
            (7, "one byte"),
            (3.5, "4 bits"),
            (14e9, "in bytes"),
            (2, "one parameter"),
            (13, "multiply"),
        ],
    },
    "to_mend": {
        "right": [
            lambda findings: [found.title for found in findings if found.level != "ok"],
            lambda findings: (f.title for f in findings if f.level in ("warning", "error")),
        ],
        "wrong": [
            (lambda findings: [f.title for f in findings if f.level == "ok"], "all is well"),
            (lambda findings: [f.title for f in findings if f.level == "warning"], "ERROR"),
            (lambda findings: [f.title for f in findings if f.level == "error"], "worth reading"),
            (lambda findings: [f.title for f in findings], "leave out"),
            (lambda findings: [f for f in findings if f.level != "ok"], "not the findings"),
            (lambda findings: ["packages", "memory"], "in their order"),
        ],
    },
}

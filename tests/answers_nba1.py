"""Right and wrong answers to the exercises of appendix a1, for test_exercises.py."""

import torch

ANSWERS = {
    "half_step": {
        "right": [2**-10, 0.000977, torch.tensor(0.25 / 256)],
        "wrong": [
            (2**-9, "half of it"),
            (2**-7, "distance at 1"),
            (2**-8, "a weight at 1"),
            (2**-12, "float16"),
            (2**-13, "float16"),
            (2**-26, "float32"),
            (0.375 / 256, "no fraction"),
            (0.375, "128 numbers"),
        ],
    },
    "loss_scale": {
        "right": [64, 2.0**6, torch.tensor(64)],
        "wrong": [
            (32, "exactly half"),
            (1024, "smaller scale"),
            (128, "smaller scale"),
            (65_536, "digits"),
            (6, "exponent"),
            (2.0**-24, "must arrive"),
            (1, "without a scale"),
            (16, "must be more"),
        ],
    },
}

"""Right and wrong answers to the exercises of notebook 04, for test_exercises.py."""

import torch

ANSWERS = {
    "full_training": {
        "right": [48, 48.0, torch.tensor(16 * 3)],
        "wrong": [
            (36, "without"),
            (6, "16 bits alone"),
            (12, "float32 alone"),
            (24, "throughout"),
            (30, "both of Adam's"),
            (42, "twice"),
            (16, "3 billion"),
            (48e9, "in bytes"),
            (44.7, "GiB"),
            (100, "row"),
        ],
    },
    "whole_model": {
        "right": [
            lambda linear, other: linear * 4.127 / 8 + other * 2,
            lambda linear, other: (linear * (4 + 8 / 64 + 32 / (64 * 256)) + other * 16) / 8,
        ],
        "wrong": [
            (lambda linear, other: (linear + other) * 4.127 / 8, "embedding"),
            (lambda linear, other: (linear + other) / 2, "everything"),
            (lambda linear, other: linear / 2 + 2 * other, "constants"),
            (lambda linear, other: linear * 4.5 / 8 + 2 * other, "without double"),
            (lambda linear, other: linear * 4.127 / 8 + 4 * other, "two bytes"),
            (lambda linear, other: linear * 4.127 / 8 + 16 * other, "two bytes"),
            (lambda linear, other: linear * 4.127 + 16 * other, "in bits"),
            (lambda linear, other: linear * 4.127 / 8, "missing"),
            (lambda linear, other: linear * 4.127 + 2 * other, "not 4.127 bytes"),
            (lambda linear, other: linear, "two products"),
        ],
    },
    "logits": {
        "right": [
            lambda batch, sequence, vocabulary: 4 * batch * sequence * vocabulary,
            lambda b, s, v: torch.empty(b, s, v, device="meta").nbytes,
        ],
        "wrong": [
            (lambda b, s, v: b * s * v, "four bytes"),
            (lambda b, s, v: 2 * b * s * v, "not two"),
            (lambda b, s, v: 32 * b * s * v, "in bits"),
            (lambda b, s, v: 4 * s * v, "row of the batch"),
            (lambda b, s, v: 4 * b * v, "token of a row"),
            (lambda b, s, v: 4 * b * s, "word"),
            (lambda b, s, v: 4 * b * s * v / 2**30, "GiB"),
            (lambda b, s, v: 16 * b * s * v, "four copies"),
            (lambda b, s, v: 7, "how many"),
        ],
    },
}

"""Right and wrong answers to the exercises of notebook 03, for test_exercises.py."""

import torch

ANSWERS = {
    "backward": {
        "right": [
            lambda gradient, weight: gradient @ weight.dequantize(),
            lambda gradient, weight: (weight.dequantize().T @ gradient.T).T,
        ],
        "wrong": [
            (lambda gradient, weight: (gradient @ weight.dequantize(), None), "alone"),
            (lambda gradient, weight: torch.zeros(weight.shape), "frozen"),
            (lambda gradient, weight: gradient @ weight.dequantize().T, "transpose"),
            (lambda gradient, weight: weight.dequantize() @ gradient, "raised RuntimeError"),
            (lambda gradient, weight: gradient[:, :4], "yours is [5, 4]"),
            (lambda gradient, weight: gradient @ weight.packed.float(), "raised RuntimeError"),
            (lambda gradient, weight: gradient @ weight.dequantize() / 2, "numbers are not"),
            (lambda gradient, weight: gradient @ weight.dequantize().sign(), "numbers are not"),
        ],
    },
    "layer_bytes": {
        "right": [
            lambda o, i, r: o * i / 2 + o * i / 16 + 4 * r * (o + i),
            lambda o, i, r: torch.tensor(o * i * 4.5 / 8 + 4 * r * (o + i)),
        ],
        "wrong": [
            (lambda o, i, r: o * i / 2 + 4 * r * (o + i), "scale too"),
            (lambda o, i, r: o * i * 4.5 / 8, "add the adapter"),
            (lambda o, i, r: o * i * 4.5 / 8 + 2 * r * (o + i), "16 bits"),
            (lambda o, i, r: o * i * 4.5 / 8 + r * (o + i), "four bytes"),
            (lambda o, i, r: (o * i + r * (o + i)) * 4.5 / 8, "not kept in 4 bits"),
            (lambda o, i, r: o * i * 4.5 + 32 * r * (o + i), "in bits"),
            (lambda o, i, r: (o * i * 4.5 / 8 + 4 * r * (o + i)) / 1024, "in KB"),
            (lambda o, i, r: o * i * 4.5 / 8 + 4 * r * o * i, "r x in"),
            (lambda o, i, r: 4 * o * i, "three things"),
        ],
    },
    "few_inputs": {
        "right": [3, 3.0, torch.tensor(3)],
        "wrong": [
            (576, "in the weights"),
            (1, "there are three"),
            (2, "there are three"),
            (16, "smaller"),
            (0, "still reaches"),
            (4, "count"),
        ],
    },
}

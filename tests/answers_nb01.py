import torch


def smallest_rank(matrix, proportion, power=2, start=1):
    sizes = torch.linalg.svdvals(matrix) ** power
    return int((sizes.cumsum(0) / sizes.sum() < proportion).sum()) + start


ANSWERS = {
    "parameters": {
        "right": [16_896, 16_896.0, torch.tensor(16_896)],
        "wrong": [
            (1536 * 576, "W is frozen"),
            (1536 * 576 + 16_896, "A and B alone"),
            (8 * 1536, "both"),
            (8 * 576, "both"),
            (8 * 1536 * 576, "add up"),
            (64, "whole input"),
            (16_895, "cells"),
        ],
    },
    "forward": {
        "right": [
            lambda x, W, A, B, alpha: x @ (W + alpha / A.shape[0] * B @ A).T,
            lambda x, W, A, B, alpha: (W @ x.T + alpha / len(A) * B @ A @ x.T).T,
        ],
        "wrong": [
            (lambda x, W, A, B, alpha: x @ W.T, "the detour is missing"),
            (lambda x, W, A, B, alpha: alpha / 2 * x @ A.T @ B.T, "add it"),
            (lambda x, W, A, B, alpha: x @ W.T + x @ A.T @ B.T, "scaling is missing"),
            (lambda x, W, A, B, alpha: x @ W.T + alpha * x @ A.T @ B.T, "divided by r"),
            (lambda x, W, A, B, alpha: x @ W.T + alpha * 2 * x @ A.T @ B.T, "instead of divided"),
            (lambda x, W, A, B, alpha: x @ W + alpha / 2 * x @ A.T @ B.T, "needs W.T"),
            (lambda x, W, A, B, alpha: alpha / 2 * x @ (W + B @ A).T, "detour alone"),
            (lambda x, W, A, B, alpha: x @ (W + alpha / 2 * B @ A), "transposes"),
            (lambda x, W, A, B, alpha: W @ x + alpha / 2 * B @ A @ x, "RuntimeError"),
            (lambda x, W, A, B, alpha: (x @ W.T)[:1], "every row"),
        ],
    },
    "smallest_rank": {
        "right": [smallest_rank],
        "wrong": [
            (
                lambda matrix, proportion: smallest_rank(matrix, proportion, start=0),
                "counts from 0",
            ),
            (lambda matrix, proportion: smallest_rank(matrix, proportion, power=1), "square"),
            (lambda matrix, proportion: min(matrix.shape), "needs rank"),
            (lambda matrix, proportion: 3, "needs rank"),
        ],
    },
    "alpha": {
        "right": [8, 8.0],
        "wrong": [
            (64, "eight times"),
            (16, "the same alpha"),
            (4, "the old rule"),
            (1, "16 / 16"),
        ],
    },
}

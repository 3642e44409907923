"""Right and wrong answers to the exercises of notebook 02, for test_exercises.py."""

import torch


def levels(end, above, below):
    values = torch.special.ndtri(torch.linspace(end, 0.5, above + 1)[:-1])
    mirrored = -torch.special.ndtri(torch.linspace(end, 0.5, below + 1)[:-1])
    return torch.cat([mirrored, torch.zeros(1), values.flip(0)])


END = 1 - (1 / 16 + 1 / 14) / 2
NF3 = levels(END, 4, 3) / levels(END, 4, 3).max()
UNPACKED = lambda packed: torch.stack([packed >> 4, packed & 15], dim=1).flatten()  # noqa: E731

ANSWERS = {
    "one_weight": {
        "right": [0.169, 0.16896, 0.3379 * 0.5, torch.tensor(0.1690)],
        "wrong": [
            (11, "the code"),
            (0.3379, "multiply the two"),
            (0.1609, "first divide"),
            (0.0805, "before you look"),
            (0.1231, "next lower"),
            (0.32, "the scaled weight"),
            (0.16, "cannot come back"),
            (0.2, "nearest level"),
            ([0.169, 0.169], "nearest level"),
            ([], "nearest level"),
        ],
    },
    "unpack": {
        "right": [
            UNPACKED,
            lambda packed: UNPACKED(packed.long()),
            lambda packed: [code for byte in packed.tolist() for code in (byte // 16, byte % 16)],
        ],
        "wrong": [
            (lambda packed: torch.stack([packed & 15, packed >> 4], dim=1).flatten(), "upper four"),
            (lambda packed: torch.cat([packed >> 4, packed & 15]), "side by side"),
            (
                lambda packed: torch.stack([packed & 240, packed & 15], dim=1).flatten(),
                "at most 15",
            ),
            (lambda packed: torch.stack([packed >> 4, packed], dim=1).flatten(), "at most 15"),
            (lambda packed: packed >> 4, "8 codes"),
            (lambda packed: UNPACKED(packed) * 0, "differ"),
        ],
    },
    "three_bits": {
        "right": [NF3, NF3.tolist(), NF3.double()],
        "wrong": [
            (NF3.flip(0), "ascending"),
            (levels(END, 4, 3), "divide by the largest"),
            (levels(1 - (1 / 32 + 1 / 30) / 2, 4, 3) / 1.848, "sixteen"),
            (-NF3.flip(0), "other way round"),
            (torch.linspace(-1, 1, 8), "zero is missing"),
            (levels(END, 4, 4), "shape"),
            (torch.tensor([-1, -0.5, -0.2, 0, 0.1, 0.3, 0.6, 1]), "equal steps"),
        ],
    },
    "bits": {
        "right": [
            lambda size: 4 + 8 / size + 32 / (256 * size),
            lambda size: (size * 256 * 4 + 256 * 8 + 32) / (size * 256),
            lambda size: torch.tensor(4 + 8 / size + 1 / (8 * size)),
        ],
        "wrong": [
            (lambda size: 4, "has a scale"),
            (lambda size: 4 + 32 / size, "without double"),
            (lambda size: 4 + 8 / size, "have scales"),
            (lambda size: 4 + 8 / size + 32 / 256, "how many weights"),
            (lambda size: (4 + 8 / size + 32 / (256 * size)) / 8, "in bytes"),
            (lambda size: 4.127, "depends"),
            (lambda size: 5, "add up"),
        ],
    },
}

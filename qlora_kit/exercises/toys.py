"""What the exercises draw and have the learner read: tiny trainings, and rows of toy pieces."""

import re
from collections import Counter

import torch

from qlora_kit.data import tickets
from qlora_kit.paths import DATA


def four_runs():
    """Four trainings that are done in seconds: {letter: (training losses, dev losses)}.

    A network of two linear layers learns to tell a ticket's category from the set of its words: 300
    steps of 32 of the kit's tickets. A training loss is the mean of ten steps, a dev loss the one
    on the 60 dev tickets after them; in nats. Of the four only C fits: A sees 100 rows again and
    again, B's learning rate is a tenth of C's, D's a hundred times as high.
    """
    train, dev = (tickets.load(DATA / f"tickets_{name}.jsonl") for name in ("train", "dev"))
    words = [set(re.findall(r"[a-z']+", ticket.ticket.lower())) for ticket in train + dev]
    count = Counter(word for found in words[: len(train)] for word in found)
    place = {word: i for i, word in enumerate(sorted(w for w in count if count[w] > 2))}
    x = torch.zeros(len(words), len(place))
    for row, found in enumerate(words):
        x[row, [place[word] for word in found if word in place]] = 1
    y = torch.tensor([tickets.CATEGORIES.index(ticket.category) for ticket in train + dev])
    tried = {"A": (1e-2, 100), "B": (3e-4, 2000), "C": (3e-3, 2000), "D": (0.3, 2000)}
    return {letter: _run(x, y, len(train), *values) for letter, values in tried.items()}


def _run(x, y, train, learning_rate, rows):
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        layers = torch.nn.Linear(x.shape[1], 32), torch.nn.ReLU(), torch.nn.Linear(32, 8)
        network, losses, dev = torch.nn.Sequential(*layers), [], []
        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
        chosen = torch.randperm(train)[:rows]
        for step in range(300):
            batch = chosen[torch.randint(len(chosen), (32,))]
            loss = torch.nn.functional.cross_entropy(network(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if step % 10 == 9:
                rest = torch.nn.functional.cross_entropy(network(x[train:]), y[train:])
                dev.append(rest.item())
    return [sum(losses[i : i + 10]) / 10 for i in range(0, 300, 10)], dev


_PIECES = [
    *("<user>", "My", " kettle", " leaks", "<end>", "<assistant>", "returns", ",", " urgent"),
    *("<end>", "<user>", "Refund", " me", "<end>", "<assistant>", "billing", ",", " normal"),
    "<end>",
]
_COMPLETIONS = (6, 10), (15, 19)  # where they begin, and where each ends with its stop token


def masked_rows():
    """Two packed examples in toy pieces, masked in four ways: {letter: (pieces, labels)}.

    As in a trainer's rows, a label of -100 is not learnt; the other labels are just numbers.
    """
    begins, ends = zip(*_COMPLETIONS, strict=True)
    right = {i for begin, end in _COMPLETIONS for i in range(begin, end)}
    learnt = {
        "A": right - {end - 1 for end in ends},
        "B": set(range(len(_PIECES))),
        "C": right - set(begins),
        "D": right,
    }
    return {
        letter: (_PIECES, [i if i in places else -100 for i in range(len(_PIECES))])
        for letter, places in learnt.items()
    }

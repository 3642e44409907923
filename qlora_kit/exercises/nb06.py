"""The exercises of notebook 06. What two of them draw is made in `toys`."""

from dataclasses import replace

from qlora_kit import memory, scoring
from qlora_kit.exercises import Exercise
from qlora_kit.memory import architectures


def _given(answer, allowed, wanted):
    """The learner's words, or a sentence that says what is odd about them."""
    if not isinstance(answer, list | tuple) or not all(isinstance(w, str) for w in answer):
        return None, f"give a list of {wanted} words, in quotation marks."
    words = [" ".join(word.lower().split()) for word in answer]
    if len(words) != wanted:
        return None, f"{wanted} words are wanted, and there are {len(words)}."
    for word in words:
        if word not in allowed:
            return None, f"{word!r} is none of the words: take {', '.join(map(repr, allowed))}."
    return words, None


def _named(right, wrong):
    """A check that wants the word of each letter in `right`; `wrong` says why another is none."""

    def check(answer):
        given, odd = _given(answer, sorted(right.values()), len(right))
        if odd:
            return odd
        for (letter, wanted), word in zip(right.items(), given, strict=True):
            if word != wanted:
                return f"{letter} is not {word!r}: {wrong[letter, word]}"

    return check


# 1. Read this curve


CURVES = {"A": "few rows", "B": "too small", "C": "good", "D": "too large"}
_CURVES = {
    ("A", "good"): "look at the dev loss: it turns and rises, while the training loss is at zero. "
    "These rows are known by heart, and that helps with no other.",
    ("A", "too small"): "its training loss is at zero early on, so no step was too small.",
    ("A", "too large"): "a step too large cannot bring the training loss down to zero. This one "
    "was learnt, but it does not hold for new rows.",
    ("B", "good"): "both losses are still falling when the training ends: it had hardly begun.",
    (
        "B",
        "too large",
    ): "it falls smoothly, only slowly. Steps that are too large make a loss jump.",
    ("B", "few rows"): "few rows are soon known by heart, with a training loss near zero. Here "
    "that loss is high, and both fall together.",
    ("C", "too small"): "the dev loss has stopped falling. With too small a rate it would "
    "still be on its way down.",
    ("C", "too large"): "it falls smoothly and stays down. Steps that are too large make it jump.",
    ("C", "few rows"): "the two differ, as in most trainings, but the dev loss does not turn and "
    "rise: what is learnt holds for new rows as well.",
    ("D", "good"): "its losses end near 2.08, the natural logarithm of 8: that is a guess "
    "among eight categories. Nothing was learnt.",
    ("D", "too small"): "small steps fall slowly and smoothly. This one begins with a leap up, and "
    "never stops jumping.",
    ("D", "few rows"): "few rows would be known by heart, with a training loss near zero. This one "
    "learnt not even those that it saw.",
}


curves = Exercise(
    _named(CURVES, _CURVES),
    why="Read both curves, and their distance: jumping is a rate too large, still falling one too "
    "small; a dev loss that turns while the training loss falls is rows known by heart.",
    hint="Two of them never get the training loss far down. Which of these jumps? In the other "
    "two, look where the dev loss goes at the end.",
    solution="""\
answer = ["few rows", "too small", "good", "too large"]""",
)


# 2. Which of these masks is wrong?

MASKS = {"A": "never ends", "B": "writes tickets", "C": "guesses", "D": "right"}
_MASKS = {
    ("A", "right"): "look at the last piece of each answer: <end> is grey, so it is never taught.",
    ("A", "writes tickets"): "the tickets are grey: they are read, not learnt. Look at the other "
    "end of the answers.",
    ("A", "guesses"): "the category, where an answer begins, is blue. Look at the other end.",
    ("B", "right"): "the prompts are blue as well. Most of the learning goes into writing tickets.",
    (
        "B",
        "never ends",
    ): "the last <end> of each answer is blue, so it is learnt. But what else is?",
    ("B", "guesses"): "the category is learnt. But so is what stands before it.",
    ("C", "right"): "look where each answer begins: the category is grey, and it is what we want.",
    ("C", "never ends"): "the last <end> of each answer is blue. Look where the answers begin.",
    ("C", "writes tickets"): "the tickets are grey. Look where the answers begin.",
    ("D", "never ends"): "each answer's last <end> is blue. The grey one ends the customer's turn.",
    ("D", "writes tickets"): "no piece of a ticket is blue.",
    ("D", "guesses"): "each answer is blue from its first piece on. <assistant> is part of the "
    "prompt: the model is given it.",
}


masks = Exercise(
    _named(MASKS, _MASKS),
    why="Learnt is the completion, all of it: from its first piece to its stop token, and nothing "
    "that the model is given.",
    hint="An answer begins after <assistant>. Its first piece is the category, its last one <end>.",
    solution="""\
answer = ["never ends", "writes tickets", "guesses", "right"]""",
)


# 3. What will this change do to memory?

_MODEL, _GPU = architectures.find("Llama-2-7b-hf"), memory.GPUS["A100-80"]
SETUP = memory.Setup(batch=2, seq=1024, rank=8, checkpointing=False, autocast=False)
CHANGES = (
    {"rank": 32},
    {"batch": 4},
    {"seq": 2048},
    {"checkpointing": True},
    {"method": "lora"},
)


def _budget(**changed):
    return memory.budget(_MODEL, replace(SETUP, **changed), _GPU)


def times(change, **before):
    """How many times as much a step needs at its peak, after a change of SETUP (as `before`)."""
    return _budget(**before, **change).peak_allocated / _budget(**before).peak_allocated


def _size(*terms, **changed):
    """These terms at the peak, or all of them, in GiB."""
    found = _budget(**changed).terms
    return f"{sum(found[name] for name in terms or found) / memory.GIB:.2g} GiB"


def memory_words():
    """What each of CHANGES does to the peak, in the words of the exercise."""
    words = []
    for change in CHANGES:
        ratio = times(change)
        [word] = [
            word
            for word, low, high in (
                ("less", 0, 0.9),
                ("same", 0.9, 1.1),
                ("more", 1.1, 1.65),
                ("double", 1.65, 99),
            )
            if low <= ratio < high
        ]
        words.append(word)
    return words


_WEIGHTS = "quantised weights", "quantisation constants", "unquantised weights"
_ADAPTER = "adapter", "gradients", "optimizer"


def _why_memory(change, word):
    """A sentence for a wrong word: what this change touches, in figures of the budget."""
    [name] = change
    kept = _size("layer activations")
    if name == "rank":
        now, then = _size(*_ADAPTER), _size(*_ADAPTER, **change)
        return f"adapter, gradients and Adam's states go from {now} to {then}, of {_size()} in all."
    if name in ("batch", "seq"):
        if word == "more":
            return f"what is kept for the backward pass doubles, and it is {kept} of {_size()}."
        if name == "seq" and word != "double":
            return f"each token keeps its activations, {kept} in all: twice the tokens, twice that."
        return f"the weights do not grow, but {kept} of {_size()} are activations, and they double."
    if name == "checkpointing":
        if word in ("more", "double"):
            return (
                "the checkpoints are kept instead of the activations, not besides: they take less."
            )
        return f"it throws away most of {kept} of activations. The price is time, not memory."
    weights, in_16_bits = _size(*_WEIGHTS), _size(*_WEIGHTS, **change)
    if word == "double":
        return (
            f"the weights go from {weights} to {in_16_bits}, nearly four times as much, but they "
            f"are a small part of {_size()}: the activations stay as they are."
        )
    return (
        f"the weights go from {weights} to {in_16_bits}, beside {kept} of activations, which stay."
    )


def _foresee(answer):
    given, odd = _given(answer, ["less", "same", "more", "double"], len(CHANGES))
    if odd:
        return odd
    for change, right, word in zip(CHANGES, memory_words(), given, strict=True):
        if word != right:
            [(name, value)] = change.items()
            return f"{name}={value!r} is not {word!r}: {_why_memory(change, word)}"


foresee = Exercise(
    _foresee,
    why="It depends on what is large: here the activations. With checkpointing on, the same "
    f"step in 16 bits would need {times({'method': 'lora'}, checkpointing=True):.1f} times as much "
    f"as in 4, and a batch of 4 only {times({'batch': 4}, checkpointing=True):.1f} times as much.",
    hint=f"The step needs {_size()}: {_size('layer activations')} are activations that wait for "
    f"the backward pass, {_size(*_WEIGHTS)} are weights, {_size(*_ADAPTER)} adapter, gradients and "
    "Adam's states. Which of these does a change touch?",
    solution="""\
answer = ["same", "double", "double", "less", "more"]""",
)


# 4. What may you conclude?

# (both right, the new one alone, the old one alone, neither), of 200 tickets
COUNTS = ((171, 12, 3, 14), (90, 40, 31, 39), (141, 3, 0, 56), (60, 8, 20, 112))


def pair(both, ours, theirs, neither):
    """The result of `scoring.compare` for such counts."""
    rows = [(1, 1)] * both + [(1, 0)] * ours + [(0, 1)] * theirs + [(0, 0)] * neither
    return scoring.compare(*zip(*rows, strict=True))


def _conclude(answer):
    given, odd = _given(answer, ["better", "worse", "not settled"], len(COUNTS))
    if odd:
        return odd
    for number, (counts, word) in enumerate(zip(COUNTS, given, strict=True), 1):
        paired = pair(*counts)
        right = paired.verdict.removesuffix(" on these rows")
        if word == right:
            continue
        coin = f"a fair coin falls as unevenly in {paired.p:.1%} of all cases"
        if right == "not settled":
            said = f"{counts[1]} against {counts[2]} may be luck: {coin}, and 5 % is the limit."
        elif word == "not settled":
            said = f"only {counts[1]} and {counts[2]} count, and {coin}: less than 5 %."
        else:
            said = f"the new one alone is right {counts[1]} times, the old one {counts[2]} times."
        return f"comparison {number} is not {word!r}: {said}"


conclude = Exercise(
    _conclude,
    why="The first two differ by the same 9 tickets, and only one is settled: what counts is how "
    "unevenly the tickets fall that tell the two apart. And 3 to 0 is less than it seems.",
    hint="Only the tickets count that one alone gets right. Would a fair coin, thrown so often, "
    "fall as unevenly in fewer than 5 of 100 cases? All of three throws fall alike in 2 of 8.",
    solution="""\
answer = ["better", "not settled", "not settled", "worse"]""",
)

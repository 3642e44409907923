"""Scores: what a model answers to held-out rows, what that is worth, and how sure it is."""

from qlora_kit.scoring.generation import (
    Answer,
    completion_nll,
    generate_answers,
    most_likely_labels,
)
from qlora_kit.scoring.intervals import Estimate, clustered, proportion, ratio
from qlora_kit.scoring.metrics import (
    LABEL_TOKENS,
    REPLY_TOKENS,
    category,
    correct,
    label_scores,
    score,
    score_facts,
)
from qlora_kit.scoring.paired import compare

__all__ = [
    "LABEL_TOKENS",
    "REPLY_TOKENS",
    "Answer",
    "Estimate",
    "category",
    "clustered",
    "compare",
    "completion_nll",
    "correct",
    "generate_answers",
    "label_scores",
    "most_likely_labels",
    "proportion",
    "ratio",
    "score",
    "score_facts",
]

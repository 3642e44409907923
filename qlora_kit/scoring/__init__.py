"""Scores: what a model answers to held-out rows, what that is worth, and how sure it is."""

from qlora_kit.scoring.generation import (
    Answer,
    answer_nll,
    category_probabilities,
    generate_answers,
    most_likely_labels,
)
from qlora_kit.scoring.intervals import Estimate, clustered, proportion, ratio
from qlora_kit.scoring.metrics import (
    FILING_TOKENS,
    LABEL_TOKENS,
    REPLY_TOKENS,
    Reply,
    category,
    correct,
    fact_scores,
    judge_replies,
    label_scores,
    score,
)
from qlora_kit.scoring.paired import compare

__all__ = [
    "FILING_TOKENS",
    "LABEL_TOKENS",
    "REPLY_TOKENS",
    "Answer",
    "Estimate",
    "Reply",
    "answer_nll",
    "category",
    "category_probabilities",
    "clustered",
    "compare",
    "correct",
    "fact_scores",
    "generate_answers",
    "judge_replies",
    "label_scores",
    "most_likely_labels",
    "proportion",
    "ratio",
    "score",
]

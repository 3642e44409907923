"""The path of notebooks as data: the one place for titles, times and memory.

README's table and notebook 00's map are made of it, and tests compare them.
"""

from typing import NamedTuple


class Stage(NamedTuple):
    """A notebook of the path.

    `file` is its name without .ipynb, `outcome` what a learner leaves with. `minutes` and
    `gigabytes` (10^9 bytes, the most that its process holds at once) are those of a run on two CPU
    cores with the default model. `device` says what else it can use.
    """

    file: str
    title: str
    outcome: str
    minutes: float
    gigabytes: float
    device: str = "CPU"

    @property
    def number(self):
        return self.file.partition("_")[0]


STAGES = (
    Stage(
        "00_start_here",
        "start here",
        "both ideas on a photograph, the map, and what your machine can do",
        minutes=0.2,
        gigabytes=0.3,
    ),
    Stage(
        "01_rank_one_by_hand",
        "rank one by hand",
        "what LoRA is: six numbers beside a 3x3 matrix, then a real model",
        minutes=1,
        gigabytes=1.4,
    ),
    Stage(
        "02_nf4_by_hand",
        "NF4 by hand",
        "what 4 bits do to real weights: levels, blocks, packed bytes, double quantisation",
        minutes=1,
        gigabytes=0.6,
    ),
    Stage(
        "03_qlora_layer_by_hand",
        "a QLoRA layer by hand",
        "a QLoRA layer in forty lines, equal to the libraries', and what its adapter can and "
        "cannot repair",
        minutes=1,
        gigabytes=0.9,
    ),
    Stage(
        "04_memory_budget",
        "where every byte goes",
        "the memory of a training step, predicted to a few per cent, and what to shrink when it "
        "does not fit",
        minutes=1.5,
        gigabytes=1.5,
    ),
    Stage(
        "05_attach_to_a_real_model",
        "attach to a real model",
        "a real model in 4 bits with an adapter on it: every option alone, and who is trained",
        minutes=1.5,
        gigabytes=1.5,
    ),
    Stage(
        "06_train_gemma",
        "train a model",
        "a model fine-tuned with QLoRA, its score before and after, and an adapter to keep",
        minutes=21,
        gigabytes=2.6,
        device="CPU or GPU",
    ),
    Stage(
        "a1_number_formats",
        "number formats",
        "an appendix: what float32, bfloat16 and float16 can hold, how updates get lost, and why "
        "Gemma breaks on a T4",
        minutes=1.5,
        gigabytes=2.5,
    ),
)

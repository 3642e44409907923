"""A training run in small, for the tests of resumption: a random Llama of one layer, a tokenizer of
whole words, and the real SFTTrainer with everything that has a state: shuffled rows, dropout,
Adam's moments, a schedule."""

import time

import tokenizers
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from qlora_kit.data import tickets
from qlora_kit.paths import DATA
from qlora_kit.training import monitor, quirks


class Pause(transformers.TrainerCallback):
    """Makes each step last long enough for a test to interrupt it."""

    def __init__(self, seconds):
        self.seconds = seconds

    def on_step_end(self, *_, **__):
        time.sleep(self.seconds)


def make_tokenizer(rows):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = ["<unk>", "<pad>", "<eos>"]
    learner = tokenizers.trainers.WordLevelTrainer(special_tokens=special)
    words.train_from_iterator([row.ticket for row in rows], learner)
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        chat_template=(
            "{% for m in messages %}{% if m['role'] == 'assistant' %}"
            "{% generation %}{{ m['content'] }} <eos> {% endgeneration %}"
            "{% else %}{{ m['content'] }} <eos> {% endif %}{% endfor %}"
        ),
    )


def tiny_llama(tokenizer, hidden_size=64, layers=1, **more):
    """A random model with the tokenizer's words, its head tied."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        tie_word_embeddings=True,
        **more,
    )
    return LlamaForCausalLM(shape)


def make_trainer(run, pause=0):
    """A trainer of 20 steps that writes a sealed checkpoint after every fourth."""
    torch.manual_seed(0)
    rows = tickets.load(DATA / "tickets_dev.jsonl")[:20]
    tokenizer = make_tokenizer(rows)
    trainer = SFTTrainer(
        model=tiny_llama(tokenizer, hidden_size=32),
        args=SFTConfig(
            output_dir=str(run / "checkpoints"),
            num_train_epochs=2,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            logging_steps=1,
            save_strategy="steps",
            save_steps=4,
            save_total_limit=2,
            bf16=False,
            assistant_only_loss=True,
            use_cpu=True,
            report_to="none",
            seed=1,
            **quirks.checkpointing(False),
        ),
        train_dataset=Dataset.from_list([row.example(i % 4 == 0) for i, row in enumerate(rows)]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=4, lora_dropout=0.2, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    quirks.adapters_to_float32(trainer.model)
    monitor.text_progress(trainer)
    monitor.seal_checkpoints(trainer)
    if pause:
        trainer.add_callback(Pause(pause))
    return trainer


def losses(trainer):
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def adapter(trainer):
    """The trained parameters, by name."""
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}

"""A trainer in small for the doctor's tests: a random Llama of one layer, a tokenizer of words."""

import datasets
import tokenizers
import torch
import transformers
from trl import SFTConfig, SFTTrainer

from qlora_kit.training import quirks

LETTERS = [f"w{i}" for i in range(40)]
SPECIAL = ["<unk>", "<pad>", "<bos>", "<eos>", "<end>"]
VOCAB = [*SPECIAL, "user", "assistant", "system", "think", *LETTERS]
ANSWER = "{% generation %}{{ (m['content'] + ' <end>') | trim }}{% endgeneration %}{{ ' ' }}"
# Gemma's way: one <bos> at the start, and a token that ends each turn; what is learnt is marked.
MARKED = (
    "{{ '<bos> ' }}{% for m in messages %}{{ m['role'] + ' ' }}{% if m['role'] == 'assistant' %}"
    + ANSWER
    + "{% else %}{{ m['content'] + ' <end> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


def words(count, start=0):
    return " ".join(LETTERS[(start + i) % len(LETTERS)] for i in range(count))


def turn(role, count, start=0):
    return {"role": role, "content": words(count, start)}


def chat(start=0, answer=2):
    """A conversation of two answers."""
    return {
        "messages": [
            turn("system", 2, start),
            turn("user", 3, start + 2),
            turn("assistant", answer, start + 5),
            turn("user", 2, start + 9),
            turn("assistant", 3, start + 11),
        ]
    }


def pair(start=0, question=3, answer=2):
    return {
        "prompt": [turn("user", question, start)],
        "completion": [turn("assistant", answer, start + 7)],
    }


CHATS = [chat(start) for start in range(6)]
PAIRS = [pair(start) for start in range(6)]


def tokenizer(template=MARKED, adds_bos=False, **special):
    numbers = {word: i for i, word in enumerate(VOCAB)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 2)]
        )
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    names = {name: token for name, token in (names | special).items() if token}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        additional_special_tokens=["<end>"],
        chat_template=template,
        **names,
    )


def bpe(profile):
    """A tokenizer of byte pairs, as small as it gets, with a profile's template and tokens."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    marks = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<bos>", "<eos>", "<s>", "</s>"]
    marks += ["<start_of_turn>", "<end_of_turn>", "<pad>", "<unk>"]
    learner = tokenizers.trainers.BpeTrainer(
        special_tokens=marks,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([" ".join(LETTERS)], learner)
    bos = {"smollm2-135m": "<|im_start|>", "llama-2-7b": "<s>"}.get(profile.name, "<bos>")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=bos,
        eos_token=profile.stop_tokens[-1],
        pad_token=profile.pad_token,
        chat_template=profile.chat_template,
    )


def model(size, stop):
    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
    )
    made.generation_config.eos_token_id = stop
    return made


def trainer(folder, tok, rows, base=None, formatting_func=None, stop="<end>", **settings):
    """The real SFTTrainer. Conversations are learnt in the assistant's turns, unless told else."""
    marked = "messages" in rows[0] and formatting_func is None
    settings = {"max_length": 64, "assistant_only_loss": marked, "max_steps": 1} | settings
    return SFTTrainer(
        model=base or model(len(tok), tok.convert_tokens_to_ids(stop)),
        args=SFTConfig(
            output_dir=str(folder),
            bf16=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            per_device_train_batch_size=2,
            **quirks.checkpointing(False),
            **settings,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tok,
        formatting_func=formatting_func,
    )


def learnt(made):
    """The learnt words of each row, as texts."""
    tok = made.processing_class
    return [
        " ".join(
            tok.convert_ids_to_tokens(
                [
                    i
                    for i, label in zip(row["input_ids"], row["labels"], strict=True)
                    if label != -100
                ]
            )
        )
        for row in made.train_dataset
    ]

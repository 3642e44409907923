"""Every mistake that the doctor knows, really made, on tiny models; and its silence without one."""

import warnings

import bitsandbytes
import pytest
import tokenizers
import torch
import transformers
from bitsandbytes.functional import _convert_weight_packed_for_cpu
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from qlora_kit import doctor, models, profiles
from qlora_kit.data import tickets
from qlora_kit.doctor.batch import turn_end
from qlora_kit.paths import DATA
from qlora_kit.training import quirks

# Gemma's way: one <bos> at the start, and a token that ends each turn.
TEMPLATE = (
    "{{ '<bos> ' }}{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' <end> ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)
WORDS = ["<unk>", "<pad>", "<bos>", "<eos>", "<end>", "user", "assistant", "hot", "cold", "tea"]


def make_tokenizer(adds_bos=False, **settings):
    """A tokenizer of whole words, which puts <bos> before a text or leaves that to the template."""
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        words.post_processor = tokenizers.processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", WORDS.index("<bos>"))]
        )
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<bos>"}
    arguments = special | {"eos_token": "<eos>", "chat_template": TEMPLATE} | settings
    return PreTrainedTokenizerFast(
        tokenizer_object=words, additional_special_tokens=["<end>"], **arguments
    )


def shape(**sizes):
    return LlamaConfig(
        **{
            "vocab_size": len(WORDS),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "tie_word_embeddings": True,
            "bos_token_id": 2,
            "eos_token_id": 3,
        }
        | sizes
    )


LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a random Llama of one layer."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    LlamaForCausalLM(shape()).save_pretrained(folder)
    return folder


def load(folder, guarded=True):
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
    )
    if guarded:
        models.guard_cpu_repacking(model)
    return model


@pytest.fixture
def adapted(base):
    return get_peft_model(load(base), LoraConfig(**LORA))


def only(findings, level, *words):
    """There is one finding, of this level, whose title holds these words."""
    [found] = findings
    assert found.level == level
    assert level == "ok" or (found.why and found.fix)
    for word in words:
        assert word in found.title, found


def test_a_report_has_a_mark_in_words_and_one_line_if_all_is_well():
    found = [
        doctor.Finding("error", "it broke", "because of " + "this " * 40, "mend it"),
        doctor.Finding("ok", "Python"),
    ]
    lines = doctor.report("the model", found).splitlines()
    assert lines[0] == "ERROR    it broke"
    assert lines[1].startswith("         because of this")
    assert lines[-2:] == ["         Do: mend it", "OK       Python"]
    assert max(map(len, lines)) <= 96
    assert doctor.report("the model", []) == "OK       the model: nothing to fix"


# The model


def test_the_doctor_is_silent_on_an_adapter_on_a_frozen_4_bit_base(adapted):
    assert doctor.model(adapted) == []


def test_an_adapter_that_was_loaded_for_answering_is_not_trained(adapted, base, tmp_path):
    adapted.save_pretrained(tmp_path)
    only(
        doctor.model(PeftModel.from_pretrained(load(base), tmp_path)),
        "error",
        "no parameter is trained",
    )
    again = PeftModel.from_pretrained(load(base), tmp_path, is_trainable=True)
    assert doctor.model(again) == []


def test_an_unfrozen_embedding_and_norms_are_named_and_counted(adapted):
    for parameter in adapted.parameters():
        if parameter.is_floating_point():  # all that requires_grad_ does not refuse
            parameter.requires_grad_(True)
    only(doctor.model(adapted), "error", "embedding (1)", "norms (3)")


def test_an_unfrozen_16_bit_base_is_seen():
    model = get_peft_model(LlamaForCausalLM(shape()), LoraConfig(**LORA))
    only(doctor.model(model), "warning", "no layer of the base is quantised")
    model.requires_grad_(True)
    only(doctor.model(model)[:1], "error", "layers (7)")


def test_modules_to_save_are_no_part_of_the_base(base):
    model = get_peft_model(load(base), LoraConfig(**LORA, modules_to_save=["norm"]))
    assert doctor.model(model) == []


@pytest.mark.parametrize(
    "dtype, level", [(torch.bfloat16, "warning"), (torch.float16, "error")], ids=str
)
def test_adapters_in_16_bits_are_seen(adapted, dtype, level):
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    only(doctor.model(adapted), level, f"{str(dtype).removeprefix('torch.')} (14)")
    quirks.adapters_to_float32(adapted)
    assert doctor.model(adapted) == []


@pytest.mark.filterwarnings("ignore:You are trying to modify:UserWarning")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_an_adapter_put_on_twice_is_seen(adapted, tmp_path):
    twice = get_peft_model(adapted, LoraConfig(**LORA))
    only(doctor.model(twice), "error", "put on twice")
    twice.save_pretrained(tmp_path, save_embedding_layers=False)
    found = doctor.adapter(tmp_path, shape())
    only(found, "error", "cannot be used: Target modules")
    assert len(found[0].title) < 170


def test_a_missing_guard_is_seen_with_the_processor_faked(base, monkeypatch):
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    model = get_peft_model(load(base, guarded=False), LoraConfig(**LORA))
    only(doctor.model(model), "error", "7 4-bit weights can be repacked")
    models.guard_cpu_repacking(model)
    assert doctor.model(model) == []


def test_a_repacked_weight_is_seen(adapted):
    layer = next(m for m in adapted.modules() if isinstance(m, bitsandbytes.nn.Linear4bit))
    weight = layer.weight  # what its forward pass does in eval mode on such a processor
    weight.data, _ = _convert_weight_packed_for_cpu(weight.data, weight.quant_state)
    only(doctor.model(adapted), "error", "1 4-bit weights were repacked")


# The batch

CHAT = [
    {
        "prompt": [{"role": "user", "content": "hot tea"}],
        "completion": [{"role": "assistant", "content": "cold"}],
    }
]


@pytest.fixture
def trainer(tmp_path):
    """A trainer on a tiny model, and generation's stop tokens as the template has them."""

    def make(tokenizer, rows, stop="<end>", model=None, peft_config=None, **settings):
        settings = {"max_length": 32, "per_device_train_batch_size": 2} | settings
        model = model or LlamaForCausalLM(shape(vocab_size=len(tokenizer)))
        model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids([stop])
        return SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=str(tmp_path / "out"),
                bf16=False,
                use_cpu=True,
                report_to="none",
                **quirks.checkpointing(False),
                **settings,
            ),
            train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
            processing_class=tokenizer,
            peft_config=peft_config,
        )

    return make


@pytest.mark.parametrize("packing", [True, False])
def test_the_doctor_is_silent_on_the_tickets_with_the_real_tokenizer(trainer, smollm2, packing):
    """SmolLM2's <|im_start|> is its BOS, and opens every turn."""
    _, tokenizer = smollm2
    rows = tickets.examples(tickets.load(DATA / "tickets_dev.jsonl")[:20], 5)
    given = {"packing": packing, "max_length": 256, "assistant_only_loss": True}
    made = trainer(tokenizer, rows, stop="<|im_end|>", **given)
    assert doctor.batch(made, len(rows)) == []


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_the_doctor_is_silent_on_chats_whose_template_writes_one_bos(trainer, packing, adds_bos):
    made = trainer(make_tokenizer(adds_bos), CHAT * 4, packing=packing)
    assert doctor.batch(made, 4) == []


def test_a_template_without_a_bos_asks_for_none(trainer):
    made = trainer(make_tokenizer(chat_template=TEMPLATE.replace("<bos> ", "")), CHAT * 2)
    assert WORDS.index("<bos>") not in made.train_dataset[0]["input_ids"]
    assert doctor.batch(made, 2) == []


def test_a_second_bos_is_seen(trainer):
    """The text of the template, handed over as text: the tokenizer adds its own <bos>."""
    tokenizer = make_tokenizer(adds_bos=True)
    turns = CHAT[0]["prompt"] + CHAT[0]["completion"]
    rows = [{"text": tokenizer.apply_chat_template(turns, tokenize=False)}] * 3
    only(doctor.batch(trainer(tokenizer, rows), 3), "error", "3 of 3", "<bos> twice")


def test_a_second_bos_is_seen_inside_a_packed_row(trainer):
    tokenizer = make_tokenizer(adds_bos=True)
    turns = CHAT[0]["prompt"] + CHAT[0]["completion"]
    rows = [{"text": tokenizer.apply_chat_template(turns, tokenize=False)}] * 3
    made = trainer(tokenizer, rows, packing=True)
    assert len(made.train_dataset) == 1
    only(doctor.batch(made, 3), "error", "3 of 3", "<bos> twice")


def test_a_missing_bos_is_seen(trainer):
    rows = [{"text": "user hot tea <end> assistant cold <end>"}] * 3
    only(doctor.batch(trainer(make_tokenizer(), rows)), "error", "no example begins with <bos>")


@pytest.mark.parametrize(
    "template, end",
    [
        (profiles.GEMMA_CHAT_TEMPLATE, "<end_of_turn>"),
        (profiles.LLAMA_2_CHAT_TEMPLATE, "<eos>"),
        (TEMPLATE, "<end>"),
        (TEMPLATE.replace(" <end>", ""), "<eos>"),
        (None, "<eos>"),
    ],
)
def test_the_token_that_ends_an_answer_is_the_templates(template, end):
    """A newline after it does not count, be it an added token, as it is in Gemma's tokenizer."""
    tokenizer = make_tokenizer(chat_template=template)
    tokenizer.add_tokens(["\n", "<end_of_turn>"])
    assert tokenizer.convert_ids_to_tokens(turn_end(tokenizer)) == end


def test_generation_that_waits_for_another_stop_is_seen(trainer):
    made = trainer(make_tokenizer(), CHAT * 2, stop="<eos>")
    found = doctor.batch(made)
    only(found, "error", "does not stop at <end>")
    assert f"eos_token_id = {[WORDS.index('<eos>'), WORDS.index('<end>')]}" in found[0].fix


def test_a_template_that_ends_no_answer_is_seen(trainer):
    template = TEMPLATE.replace(" <end>", "")
    made = trainer(make_tokenizer(chat_template=template), CHAT * 2, stop="<eos>")
    only(doctor.batch(made), "error", "<eos> is not learnt in 2 of 2 rows")


def plain_trainer(tmp_path, tokenizer, rows, collator=None, **sizes):
    """transformers' own Trainer, as a rule with its collator for language models."""
    model = LlamaForCausalLM(shape(**sizes))
    model.generation_config.eos_token_id = WORDS.index("<end>")
    return Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=1
        ),
        train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
        processing_class=tokenizer,
        data_collator=collator or DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )


def test_a_stop_that_is_masked_as_padding_is_seen(tmp_path):
    text = "<bos> user hot tea <end> assistant cold <end>"
    for pad, silent in (("<pad>", True), ("<end>", False)):
        tokenizer = make_tokenizer(pad_token=pad)
        found = doctor.batch(plain_trainer(tmp_path, tokenizer, [tokenizer(text)] * 3))
        assert (found == []) is silent
    only(found, "error", "<end> is not learnt in 3 of 3 rows")
    assert "is the padding token too" in found[0].why


def test_a_pad_token_that_is_the_stop_is_harmless_with_trls_collator(trainer):
    made = trainer(make_tokenizer(pad_token="<end>"), [*CHAT, *CHAT])
    assert doctor.batch(made, 2) == []


def test_dropped_examples_are_counted(trainer):
    long = [{**CHAT[0], "prompt": [{"role": "user", "content": "tea " * 50}]}]
    made = trainer(make_tokenizer(), CHAT * 3 + long)
    only(doctor.batch(made, 4), "warning", "1 of 4 examples were dropped")


def test_cut_off_answers_are_counted(trainer):
    long = [{**CHAT[0], "completion": [{"role": "assistant", "content": "tea " * 50}]}]
    made = trainer(make_tokenizer(), CHAT * 3 + long)
    only(doctor.batch(made, 4), "warning", "<end> is not learnt in 1 of 4 rows")


@pytest.mark.parametrize("blank, level", [(1, "warning"), (3, "error")])
def test_rows_without_a_label_are_counted(tmp_path, trainer, blank, level):
    tokenizer = make_tokenizer()
    ids = tokenizer("<bos> user hot tea <end> assistant cold <end>")["input_ids"]
    rows = [{"input_ids": ids, "labels": [-100] * len(ids)}] * blank
    rows += [{"input_ids": ids, "labels": ids}] * (3 - blank)
    made = plain_trainer(tmp_path, tokenizer, rows, transformers.default_data_collator)
    only(doctor.batch(made, 3), level, f"{blank} of 3 rows: every label is -100")
    # TRL drops them by itself
    only(doctor.batch(trainer(tokenizer, rows), 3), level, f"{blank} of 3 examples were dropped")


def test_rows_beyond_the_models_context_are_counted(tmp_path):
    tokenizer = make_tokenizer()
    rows = [tokenizer("<bos> user " + "tea " * n + "<end>") for n in (3, 40)]
    made = plain_trainer(tmp_path, tokenizer, rows, max_position_embeddings=32)
    only(doctor.batch(made), "error", "1 of 2 rows are longer than the model's context, 32 tokens")


def test_rows_longer_than_max_length_are_counted(trainer):
    ids = make_tokenizer()("<bos> user " + "tea " * 40 + "<end>")["input_ids"]
    rows = [{"input_ids": ids, "labels": ids}]
    settings = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": 32}
    made = trainer(make_tokenizer(), rows, **settings)
    only(doctor.batch(made), "warning", "1 of 1 rows are longer than max_length, 32 tokens")


def stream(rows):
    """A data set that can only be read from its beginning, and the rows that were read of it."""
    read = []

    def reader():
        for row in rows:
            read.append(row)
            yield row

    return IterableDataset.from_generator(reader), read


@pytest.mark.parametrize("packing", [True, False])
def test_a_short_stream_is_looked_at_as_a_list_is(trainer, packing):
    made = trainer(make_tokenizer(), stream(CHAT * 4)[0], packing=packing, max_steps=1)
    assert doctor.batch(made, 4) == []
    only(doctor.batch(made, 5), "warning", "1 of 5 examples were dropped")
    made.model.generation_config.eos_token_id = WORDS.index("<eos>")
    only(doctor.batch(made), "error", "does not stop at <end>")


def test_a_long_stream_is_looked_at_in_its_first_rows_and_they_are_trained_on_all_the_same(
    tmp_path,
):
    ids = make_tokenizer()("<bos> user hot tea <end> assistant cold <end>")["input_ids"]
    rows, read = stream([{"input_ids": ids, "row": n} for n in range(1000)])
    made = plain_trainer(tmp_path, make_tokenizer(), rows)
    only(doctor.batch(made, 1000), "ok", "its first 100 rows were looked at")
    assert 100 <= len(read) < 150, "and no more was read"
    read.clear()
    assert len(next(iter(made.get_train_dataloader()))["input_ids"]) == 8
    assert read[0]["row"] == 0, "the trainer's stream begins at its beginning"


def test_what_is_wrong_in_a_long_stream_is_counted_in_its_first_rows(tmp_path):
    ids = make_tokenizer()("<bos> user hot tea <end> assistant cold")["input_ids"]
    made = plain_trainer(tmp_path, make_tokenizer(), stream([{"input_ids": ids[:-3]}] * 1000)[0])
    wrong, looked = doctor.batch(made, 1000)
    only([wrong], "error", "<end> is not learnt in 100 of 100 rows")
    only([looked], "ok", "its first 100 rows")


def test_a_stream_that_can_be_read_once_is_left_to_the_trainer(tmp_path):
    class Once(torch.utils.data.IterableDataset):
        def __init__(self, rows):
            self.rows = iter(rows)

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.rows)

        def __len__(self):  # torch allows it
            return 3

    ids = make_tokenizer()("<bos> user hot tea <end>")["input_ids"]
    rows = Once([{"input_ids": ids}] * 3)
    made = plain_trainer(tmp_path, make_tokenizer(), rows)
    only(doctor.batch(made), "warning", "were not looked at", "read only once")
    assert len([*rows]) == 3


def test_a_list_of_dictionaries_is_looked_at(tmp_path):
    ids = make_tokenizer()("<bos> user " + "tea " * 40 + "<end>")["input_ids"]
    made = plain_trainer(tmp_path, make_tokenizer(), ({"input_ids": ids},) * 3)
    assert not hasattr(made.train_dataset, "column_names")
    made.model.config.max_position_embeddings = 32
    only(doctor.batch(made, 3), "error", "3 of 3 rows are longer than the model's context")


def test_looking_changes_no_random_number(trainer):
    made = trainer(make_tokenizer(), CHAT * 4)
    before = torch.get_rng_state()
    doctor.batch(made, 4)
    assert torch.equal(torch.get_rng_state(), before)


# The first step


def one_pass(model):
    ids = torch.tensor([[2, 5, 7, 9, 4, 6, 8, 4]])
    loss = model(ids, labels=ids).loss
    loss.backward()
    return loss.detach()


def test_the_doctor_is_silent_after_a_healthy_first_step(adapted):
    assert doctor.first_step(adapted, one_pass(adapted)) == []


def test_float16_that_overflows_is_seen():
    model = LlamaForCausalLM(shape())
    with torch.no_grad():  # activations above 65,504, as Gemma's
        model.model.layers[0].mlp.down_proj.weight.mul_(1e7)
    model = get_peft_model(model, LoraConfig(**LORA))
    assert doctor.first_step(model, one_pass(model)) == []
    model.zero_grad()
    model.half()
    titles = [found.title for found in doctor.first_step(model, one_pass(model))]
    assert titles[0] == "the loss is nan"
    assert "infinities or no numbers" in titles[1]


def test_a_step_without_a_backward_pass_is_seen(adapted):
    only(doctor.first_step(adapted, 1.0), "error", "7 of 7 B matrices got no gradient")


def test_a_and_b_that_both_start_at_zero_are_seen(adapted):
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name:
            torch.nn.init.zeros_(parameter)
    only(doctor.first_step(adapted, one_pass(adapted)), "error", "7 of 7 B matrices")


def test_one_frozen_b_is_named(adapted):
    for name, parameter in adapted.named_parameters():
        if "up_proj.lora_B" in name:
            parameter.requires_grad_(False)
    found = doctor.first_step(adapted, one_pass(adapted))
    only(found, "error", "1 of 7 B matrices got no gradient")
    assert "up_proj.lora_B" in found[0].fix


def test_a_model_without_an_adapter_is_seen(base):
    only(doctor.first_step(load(base), 1.0), "error", "no adapter")


def test_the_doctor_is_silent_on_the_whole_path_of_notebook_06(trainer, smollm2, tmp_path):
    """The lines that the notebook has: a 4-bit base, packed tickets, one step, a saved adapter."""
    _, tokenizer = smollm2
    LlamaForCausalLM(shape(vocab_size=len(tokenizer))).save_pretrained(tmp_path / "base")
    rows = tickets.examples(tickets.load(DATA / "tickets_dev.jsonl")[:20], 5)
    made = trainer(
        tokenizer,
        rows,
        stop="<|im_end|>",
        model=load(tmp_path / "base"),
        peft_config=LoraConfig(**LORA, lora_dropout=0.05),
        assistant_only_loss=True,
        packing=True,
        max_length=256,
        per_device_train_batch_size=1,
    )
    quirks.adapters_to_float32(made.model)
    assert doctor.model(made.model) == []
    assert doctor.batch(made, given=len(rows)) == []

    before = torch.get_rng_state()
    with torch.random.fork_rng():
        inputs = made._prepare_inputs(made.data_collator([made.train_dataset[0]]))
        loss = made.compute_loss(made.model.train(), inputs)
        loss.backward()
    assert doctor.first_step(made.model, loss) == []
    made.model.zero_grad()
    assert torch.equal(torch.get_rng_state(), before), "the run would be another"

    made.model.peft_config["default"].base_model_name_or_path = "some/model"
    move(made.model)
    made.model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert doctor.adapter(tmp_path / "adapter", made.model) == []


# The adapter's folder


def move(model):
    """As if it had been trained: no B is zero."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def folder(adapted, tmp_path):
    """A saved adapter, its base named as notebook 06 does it."""
    move(adapted)
    adapted.peft_config["default"].base_model_name_or_path = "some/model"
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    return tmp_path


def rewrite(folder, change):
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"modules_to_save": ["norm"]}])
def test_the_doctor_is_silent_on_an_adapter_and_its_base(base, tmp_path, settings):
    model = load(base)
    adapted = move(get_peft_model(model, LoraConfig(**LORA, **settings)))
    adapted.peft_config["default"].base_model_name_or_path = "some/model"
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    assert doctor.adapter(tmp_path, adapted) == []
    assert doctor.adapter(tmp_path, shape()) == []


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_config_that_cannot_be_read_is_seen(folder, content):
    path = folder / "adapter_config.json"
    path.unlink() if content is None else path.write_text(content)
    only(doctor.adapter(folder, shape()), "error", "adapter_config.json cannot be used")


def test_a_base_that_only_this_machine_knows_is_seen(adapted, base, tmp_path):
    move(adapted).save_pretrained(tmp_path, save_embedding_layers=False)
    only(doctor.adapter(tmp_path, shape()), "warning", f"calls its base {str(base)!r}")


def test_a_file_that_was_cut_off_is_seen(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    only(doctor.adapter(folder, shape()), "error", "cannot be read")
    path.unlink()
    only(doctor.adapter(folder, shape()), "error", "cannot be read")


def test_another_base_is_seen_and_the_size_is_worked_out(folder):
    found = doctor.adapter(folder, shape(intermediate_size=256))
    only(found, "error", "3 tensors have another shape")
    held = 4 * 4 * (64 + 64) + 3 * 4 * (64 + 128)  # r (in + out): four and three modules
    wanted = 4 * 4 * (64 + 64) + 3 * 4 * (64 + 256)
    assert f"holds {held:,} numbers" in found[0].why
    assert f"makes {wanted:,}." in found[0].why


def test_a_base_with_more_layers_is_seen(base, tmp_path):
    model = get_peft_model(load(base), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    move(model).save_pretrained(tmp_path)
    found = doctor.adapter(tmp_path, shape(num_hidden_layers=2))
    only(found[1:], "error", "4 tensors are missing", "layers.1")


def test_a_base_with_fewer_layers_is_seen(tmp_path):
    two = LlamaForCausalLM(shape(num_hidden_layers=2))
    move(get_peft_model(two, LoraConfig(**LORA))).save_pretrained(tmp_path)
    [_, *found] = doctor.adapter(tmp_path, shape())  # the first: such a base has no name
    only(found, "error", "14 tensors have no place on this base", "layers.1")


def test_a_base_of_another_family_is_seen(folder):
    other = transformers.GPT2Config(n_layer=1, n_embd=64, n_head=4, vocab_size=10)
    only(doctor.adapter(folder, other), "error", "cannot be used")


def test_an_embedding_that_was_saved_along_is_seen(adapted, folder):
    adapted.save_pretrained(folder, save_embedding_layers=True)
    found = doctor.adapter(folder, adapted)
    only(found, "warning", "2 tensors are weights of the base, saved along", "lm_head")


def test_a_missing_tensor_is_seen(folder):
    rewrite(folder, lambda tensors: dict(list(tensors.items())[1:]))
    only(doctor.adapter(folder, shape()), "error", "1 tensors are missing", "lora_A")


def test_pickles_are_seen(folder):
    torch.save(TrainingArguments, folder / "training_args.bin")  # as Trainer.save_model leaves it
    only(doctor.adapter(folder, shape()), "warning", "training_args.bin")

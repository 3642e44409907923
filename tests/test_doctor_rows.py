"""How rows begin, that every example is there, and ids: mistakes really made, and their fixes."""

import pytest
import tiny_sft
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from test_doctor_masks import BOTH, the
from tiny_sft import CHATS, MARKED, PAIRS, VOCAB, chat, pair, tokenizer, trainer, turn, words

from qlora_kit import doctor, profiles

NAKED = MARKED.replace("{{ '<bos> ' }}", "")


def texts(chats=CHATS):
    """Conversations as texts of the template."""
    return [tokenizer().apply_chat_template(row["messages"], tokenize=False) for row in chats]


def fields(some):
    return [{"text": text} for text in some]


# How rows begin


@BOTH
def test_a_template_without_the_tokenizers_bos_is_seen(tmp_path, packing):
    tok = tokenizer(NAKED, adds_bos=True)
    found = doctor.batch(trainer(tmp_path, tok, CHATS, packing=packing), 6)
    found = the(found, "warning", "puts <bos> before a text, the chat template does not")
    exec(found.fix.partition(", before")[0], {"tokenizer": tok})
    made = trainer(tmp_path, tok, CHATS, packing=packing)
    assert doctor.batch(made, 6) == []
    assert made.train_dataset[0]["input_ids"][:2] == [2, VOCAB.index("system")]


@BOTH
def test_a_bos_that_only_some_rows_have_is_seen(tmp_path, packing):
    some = [text.replace("<bos> ", "") for text in texts()[:5]]
    made = trainer(tmp_path, tokenizer(), fields([*some, *texts()[5:]]), packing=packing)
    the(doctor.batch(made, 6), "error", "5 of 6 examples do not begin with <bos>", "chat messages")
    assert doctor.batch(trainer(tmp_path, tokenizer(), CHATS, packing=packing), 6) == []


def test_a_bos_that_is_left_out_when_texts_are_tokenised_is_seen(tmp_path):
    tok = tokenizer(None, adds_bos=True)
    for special in (False, True):
        ids = [tok(words(5, i) + " <eos>", add_special_tokens=special) for i in range(3)]
        rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in ids]
        found = doctor.batch(trainer(tmp_path, tok, rows, stop="<eos>"), 3)
        if not special:
            the(found, "error", "no example begins with <bos>", "add_special_tokens=True")
    assert found == []


@BOTH
def test_texts_of_another_template_are_seen(tmp_path, packing):
    other = fields(f"think {words(3, i)} w1 {words(2, i)}" for i in range(4))
    made = trainer(tmp_path, tokenizer(), [*fields(texts()), *other], packing=packing)
    the(
        doctor.batch(made, 10),
        "warning",
        "4 of 10 examples are not written in the tokenizer's chat template",
        "begin with 'think w0",
        '"messages"',
    )
    made = trainer(tmp_path, tokenizer(), CHATS, packing=packing)
    assert doctor.batch(made, 6) == []


@BOTH
def test_another_beginning_is_seen(tmp_path, packing):
    rows = fields(text.replace("<bos>", "<bos> w3") for text in texts())
    made = trainer(tmp_path, tokenizer(), rows, packing=packing)
    the(
        doctor.batch(made, 6),
        "warning",
        "6 of 6 examples do not begin as the chat template does",
        "'<bos> w3 system",
    )
    assert doctor.batch(trainer(tmp_path, tokenizer(), CHATS, packing=packing), 6) == []


@BOTH
def test_a_system_text_that_the_template_adds_only_later_is_seen(tmp_path, packing):
    own = "{% if messages[0]['role'] != 'system' %}{{ 'system think <end> ' }}{% endif %}"
    tok = tokenizer(MARKED.replace("{% for", own + "{% for", 1))
    asked = [{"messages": row["messages"][1:]} for row in CHATS]
    made = trainer(tmp_path, tok, fields(texts(asked)), packing=packing)
    the(doctor.batch(made, 6), "warning", "do not begin as the", "'<bos> system think")
    made = trainer(tmp_path, tok, asked, packing=packing)
    assert doctor.batch(made, asked) == []


@BOTH
def test_two_system_texts_are_seen(tmp_path, packing):
    tok = tokenizer(MARKED.replace("'<bos> '", "'<bos> system think <end> '"))
    found = doctor.batch(trainer(tmp_path, tok, CHATS, packing=packing), 6)
    the(found, "warning", "6 of 6 examples hold two", "leave the system turns out of the messages")
    rows = [{"messages": row["messages"][1:]} for row in CHATS]
    assert doctor.batch(trainer(tmp_path, tok, rows, packing=packing), rows) == []


def test_a_text_of_the_template_in_a_message_is_seen(tmp_path):
    tok = tiny_sft.bpe(profiles.SMOLLM2)
    rows = [{"messages": row["messages"][1:3]} for row in CHATS]
    twice = [
        {"messages": [{"role": "user", "content": text}, turn("assistant", 2)]}
        for text in (tok.apply_chat_template(r["messages"][:1], tokenize=False) for r in rows)
    ]
    settings = {"stop": "<|im_end|>", "max_length": 512}
    found = doctor.batch(trainer(tmp_path, tok, twice, **settings), 6)
    the(found, "warning", "6 of 6 examples hold two system texts", "give messages their bare texts")
    assert doctor.batch(trainer(tmp_path, tok, rows, **settings), rows) == []


@BOTH
@pytest.mark.parametrize("rows", [CHATS, PAIRS])
def test_a_generation_prompt_that_the_rows_lack_is_seen(tmp_path, rows, packing):
    tok = tokenizer(MARKED.replace("{{ 'assistant ' }}", "{{ 'assistant think ' }}"))
    found = doctor.batch(trainer(tmp_path, tok, rows, packing=packing), len(rows))
    answers = 12 if rows is CHATS else 6
    the(
        found,
        "warning",
        f"{answers} of {answers} answers do not stand behind the whole generation prompt",
        "ends in 'think'",
        "take it out of its generation prompt",
    )
    assert doctor.batch(trainer(tmp_path, tokenizer(), rows, packing=packing), rows) == []


# Every example is there


@BOTH
def test_a_formatting_func_that_is_ignored_is_seen(tmp_path, packing):
    def make(row):
        return "<bos> user think " + row["messages"][1]["content"] + " <end> assistant w1 <end>"

    made = trainer(tmp_path, tokenizer(), CHATS, formatting_func=make, packing=packing)
    found = doctor.batch(made, CHATS)
    found = the(found, "warning", "formatting_func was ignored: 6 of 6", "learns from `messages`")
    if packing:
        [said] = doctor.batch(made, 6)
        assert said.level == "ok" and "formatting_func was used was not looked at" in said.title
    else:
        assert doctor.batch(made, 6) == [found]
    dataset, names = Dataset.from_list(CHATS), {"formatting_func": make}
    rows = eval(found.fix.partition(", and hand")[0], {"dataset": dataset} | names)
    made = trainer(tmp_path, tokenizer(), [*rows], packing=packing)
    assert doctor.batch(made, 6) == doctor.batch(made, [*rows]) == []
    assert VOCAB.index("think") in made.train_dataset[0]["input_ids"]


def test_a_formatting_func_beside_another_text_field_is_seen(tmp_path):
    rows = [{"q": f"<bos> user {words(3, i)} <end> assistant w1 <end>"} for i in range(4)]

    def make(row):
        return row["q"].replace("user", "user think")

    made = trainer(tmp_path, tokenizer(), rows, formatting_func=make, dataset_text_field="q")
    the(doctor.batch(made, 4), "warning", "4 of 4 examples hold another text", "learns from `q`")
    made = trainer(tmp_path, tokenizer(), rows, formatting_func=make)
    assert doctor.batch(made, 4) == doctor.batch(made, rows) == []


@pytest.mark.parametrize("given", [len, list])
def test_a_column_that_nobody_reads_is_seen(tmp_path, given):
    rows = [{**row, "system": words(3, i + 20)} for i, row in enumerate(PAIRS)]
    found = doctor.batch(trainer(tmp_path, tokenizer(), rows), given(rows))
    the(found, "warning", "the column `system` is missing in 6 of 6", "content of a user's message")
    found = doctor.batch(trainer(tmp_path, tokenizer(), rows, packing=True), rows)
    the(found, "warning", "the column `system` is missing in 6 of 6")
    for row in rows:
        [user] = row["prompt"]
        said = {"role": "user", "content": row.pop("system") + " " + user["content"]}
        row["prompt"] = [said]
    assert doctor.batch(trainer(tmp_path, tokenizer(), rows), given(rows)) == []


def test_a_role_and_tools_that_the_template_leaves_out_are_seen(tmp_path):
    silent = MARKED.replace("in messages %}", "in messages if m['role'] != 'system' %}")
    rows = [chat(i + 3) for i in range(6)]
    found = doctor.batch(trainer(tmp_path, tokenizer(silent), rows), 6)
    the(found, "warning", "what the system says is missing in 6 of 6 examples")
    assert doctor.batch(trainer(tmp_path, tokenizer(), rows), 6) == []


def test_tools_that_the_template_leaves_out_are_seen(tmp_path):
    tools = '[{"type": "function", "function": {"name": "w39", "parameters": {}}}]'
    rows = [{**row, "tools": tools} for row in CHATS]
    found = doctor.batch(trainer(tmp_path, tokenizer(), rows), rows)
    the(found, "warning", "a tool of the column `tools` is missing in 6 of 6", "a user's message")
    told = [[*row["messages"]] for row in CHATS]
    for turns in told:
        turns[1] = {"role": "user", "content": "w39 " + turns[1]["content"]}
    rows = [{"messages": turns, "tools": tools} for turns in told]
    assert doctor.batch(trainer(tmp_path, tokenizer(), rows), rows) == []


def test_columns_that_are_no_texts_may_be_ignored(tmp_path):
    rows = [{**row, "id": "think", "source": "think", "score": 1} for row in CHATS]
    assert doctor.batch(trainer(tmp_path, tokenizer(), rows), rows) == []


def test_the_cause_of_dropped_examples_is_named(tmp_path):
    rows = [*PAIRS, pair(3, 40)]
    made = trainer(tmp_path, tokenizer(), rows, max_length=32)
    the(doctor.batch(made, 7), "warning", "1 of 7 examples were dropped", "prompt alone reaches")
    the(doctor.batch(made, rows), "warning", "1 of 7", "SFTConfig(max_length=47)")
    made = trainer(tmp_path, tokenizer(), rows, max_length=47)
    assert doctor.batch(made, rows) == []
    made = trainer(tmp_path, tokenizer(), PAIRS, packing=True)  # handed fewer
    the(doctor.batch(made, 7), "warning", "1 of 7", "fewer were handed")


@BOTH
def test_examples_that_were_not_given_or_are_there_twice_are_seen(tmp_path, packing):
    made = trainer(tmp_path, tokenizer(), [*CHATS, CHATS[0]], packing=packing)
    the(doctor.batch(made, CHATS), "warning", "1 of 7 examples are there more often")
    assert doctor.batch(made, [*CHATS, CHATS[0]]) == []
    the(doctor.batch(made, [*CHATS, chat(30)]), "warning", "1 of 7 examples are there more often")
    made = trainer(tmp_path, tokenizer(), [*CHATS[:5], chat(30)], packing=packing)
    the(doctor.batch(made, CHATS), "warning", "1 of 6 examples hold a text that was not given")
    made.processing_class.chat_template = MARKED.replace("'<bos> '", "'<bos> <bos> '")
    assert "was not given" in "".join(f.title for f in doctor.batch(made, CHATS))


@pytest.mark.parametrize("rows", [CHATS, PAIRS])
def test_packing_that_cuts_is_seen(tmp_path, rows):
    settings = {"packing": True, "max_length": 32}
    made = trainer(tmp_path, tokenizer(), rows, packing_strategy="wrapped", **settings)
    found = the(doctor.batch(made, 6), "warning", "see others of their row", "are cut in two")
    assert found.fix == "SFTConfig(packing_strategy='bfd')"
    made = trainer(tmp_path, tokenizer(), rows, packing_strategy="bfd", **settings)
    assert doctor.batch(made, 6) == []


def test_examples_that_see_each_other_are_seen_for_it_is_true(tmp_path):
    """The last example's logits change with the first one's tokens, and do not after the fix."""

    def effect(made):
        batch = made.data_collator([made.train_dataset[0]])
        other = {**batch, "input_ids": batch["input_ids"].clone()}
        other["input_ids"][0, 3] = 20
        model = made.model.eval()
        with torch.no_grad():
            logits = [model(**b, use_cache=False).logits[0, -1] for b in (batch, other)]
        return (logits[0] - logits[1]).abs().max().item()

    ids = [tokenizer().apply_chat_template(row["messages"])["input_ids"] for row in CHATS]
    joined = [{"input_ids": ids[i] + ids[i + 1]} for i in (0, 2, 4)]
    made = trainer(tmp_path, tokenizer(), joined)
    the(doctor.batch(made), "warning", "6 of 6 examples see others of their row", "packing=True")
    assert effect(made) > 1e-6
    made = trainer(tmp_path, tokenizer(), CHATS, packing=True)
    assert len(made.train_dataset[0]["seq_lengths"]) > 1
    assert doctor.batch(made, 6) == []
    assert effect(made) == 0


@pytest.mark.parametrize("strategy", ["wrapped", "bfd_split", "bfd"])
def test_plain_texts_may_be_packed_in_any_way(tmp_path, strategy):
    rows = fields(words(9, i) for i in range(6))
    settings = {"packing": True, "packing_strategy": strategy, "max_length": 25}
    made = trainer(tmp_path, tokenizer(None), rows, stop="<eos>", **settings)
    assert doctor.batch(made, 6) == doctor.batch(made, rows) == []


# Ids


def test_padding_beyond_the_table_is_seen_and_the_fix_is_python(tmp_path):
    tok = tokenizer(pad_token=None)
    tok.add_special_tokens({"pad_token": "[PAD]"})

    def make():
        return trainer(tmp_path, tok, [pair(0, 3), pair(1, 6)], base=tiny_sft.model(len(VOCAB), 4))

    def run(made):
        return made.model(**made.data_collator([made.train_dataset[0], made.train_dataset[1]]))

    made = make()
    found = the(doctor.batch(made, 2), "error", "padding is token 49 ([PAD])", "has 49 rows")
    with pytest.raises(IndexError):
        run(made)
    exec(found.fix.partition(", before")[0], {"tokenizer": tok})
    made = make()
    assert doctor.batch(made, 2) == []
    run(made)


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_without_rows_are_seen_and_are_trained_after_the_fix(tmp_path, tied):
    tok = tokenizer(MARKED.replace("(m['content'] + ' <end>')", "(m['content'] + ' <new> <end>')"))
    tok.add_special_tokens({"additional_special_tokens": ["<end>", "<new>"]})
    base = tiny_sft.model(len(VOCAB), 4)
    if not tied:
        base.config.tie_word_embeddings = False
        base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.clone())
    made = trainer(tmp_path, tok, CHATS, base=base)
    found = the(doctor.batch(made, 6), "error", "1 tokens of the rows lie beyond", "<new>")
    resize, _, rest = found.fix.partition(" before the trainer is built, and ")
    eval(resize, {"model": base})
    settings = eval(rest.partition(", or")[0].replace("LoraConfig(", "dict("))
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], **settings))
    made = trainer(tmp_path, tok, CHATS, base=model, learning_rate=0.1)
    assert doctor.batch(made, 6) == []
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    before = [table.weight[49].detach().clone() for table in tables]
    made.train()
    for table, row in zip(tables, before, strict=True):
        assert not torch.equal(table.weight[49], row)


def plain(tmp_path, rows, **given):
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none"
    )
    base = tiny_sft.model(len(VOCAB), 4)
    return transformers.Trainer(model=base, args=arguments, train_dataset=rows, **given)


def test_a_trainer_without_a_tokenizer_is_looked_at_in_part(tmp_path):
    rows = [{"input_ids": [2, 5, 9, 4], "labels": [2, 5, 9, 4]}] * 3
    collator = {"data_collator": transformers.default_data_collator}
    [said] = doctor.batch(plain(tmp_path, rows, **collator), 3)
    assert (said.level, said.title) == (
        "ok",
        "texts were not looked at: the trainer has no tokenizer",
    )
    bad = [{"input_ids": [2, 5, 99, 4], "labels": [-100] * 4}] * 3
    titles = [f.title for f in doctor.batch(plain(tmp_path, bad, **collator), 3)]
    assert "beyond the model's table of 49 rows" in titles[0]
    assert "nothing is learnt from 3 of 3 rows" in titles[1]


def test_rows_that_cannot_be_collated_are_said_to_be_unread(tmp_path):
    collator = {"data_collator": transformers.default_data_collator}
    for rows in ([{"text": "w1"}], [{"input_ids": [2, 5]}]):
        the(doctor.batch(plain(tmp_path, rows, **collator)), "warning", "rows were not looked at")
    assert doctor.batch(plain(tmp_path, None, **collator))[0].level == "ok"


def test_a_template_that_raises_is_no_crash(tmp_path):
    strict = MARKED.replace(
        "{{ '<bos> ' }}",
        "{% if messages|length < 5 %}{{ raise_exception('no') }}{% endif %}{{ '<bos> ' }}",
    )
    made = trainer(tmp_path, tokenizer(strict), CHATS)
    [found] = doctor.batch(made, CHATS)
    assert (found.level, found.title.partition(":")[0]) == ("ok", "answers were not looked for")

"""What is learnt is what is meant: each mistake really made, its finding, and the fix applied."""

import pytest
import tiny_sft
import torch
import transformers
from datasets import Dataset
from tiny_sft import ANSWER, CHATS, MARKED, PAIRS, chat, learnt, pair, tokenizer, trainer, turn

from qlora_kit import doctor, profiles
from qlora_kit.doctor.batch import tokens

BOTH = pytest.mark.parametrize("packing", [False, True])


def the(findings, level, *texts):
    """The only finding, which is of this level and has these texts in it."""
    [found] = findings
    assert found.level == level
    for text in texts:
        assert text in f"{found.title}\n{found.why}\n{found.fix}", found
    return found


@BOTH
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma-3-270m", "llama-2-7b"])
@pytest.mark.parametrize("kind", ["messages", "pairs"])
def test_the_profiles_templates_are_healthy(tmp_path, name, kind, packing):
    profile = profiles.PROFILES[name]
    rows = CHATS if kind == "messages" else PAIRS
    stop = profile.stop_tokens[0]
    sizes = {"packing": packing, "max_length": 256}
    made = trainer(tmp_path, tiny_sft.bpe(profile), rows, stop=stop, **sizes)
    assert doctor.batch(made, len(rows)) == []
    assert doctor.batch(made, rows) == []
    (answers, all_answers), (ends, all_ends), (rest, _) = tokens(made).values()
    assert answers == all_answers > 0
    assert ends == all_ends == (12 if kind == "messages" else 6)
    assert rest <= 6, "a newline behind a completion at most"


@BOTH
def test_tokens_are_counted_by_kind(tmp_path, packing):
    made = trainer(tmp_path, tokenizer(), CHATS, packing=packing)
    assert doctor.batch(made, CHATS) == []
    assert tokens(made) == {"answers": (30, 30), "ends": (12, 12), "rest": (0, 96)}


@BOTH
@pytest.mark.parametrize("rows, wrong", [(CHATS, "assistant_only"), (PAIRS, "completion_only")])
def test_prompts_that_are_learnt_are_seen(tmp_path, rows, wrong, packing):
    settings = {"packing": packing}
    made = trainer(tmp_path, tokenizer(), rows, **{f"{wrong}_loss": False}, **settings)
    found = the(doctor.batch(made, len(rows)), "warning", "prompts are learnt too")
    assert any("user" in row for row in learnt(made))
    assert "assistant_only_loss=True" in found.fix and '"completion"' in found.fix
    made = trainer(tmp_path, tokenizer(), rows, **settings)
    assert doctor.batch(made, len(rows)) == []
    assert not any("user" in row for row in learnt(made))


@BOTH
def test_a_text_is_learnt_as_a_whole(tmp_path, packing):
    texts = [tokenizer().apply_chat_template(row["messages"], tokenize=False) for row in CHATS]
    made = trainer(tmp_path, tokenizer(), [{"text": text} for text in texts], packing=packing)
    assert doctor.batch(made, 6) == []
    plain = [{"text": tiny_sft.words(9, i)} for i in range(6)]
    made = trainer(tmp_path, tokenizer(None), plain, stop="<eos>", packing=packing)
    assert doctor.batch(made, plain) == []


@BOTH
def test_an_end_outside_of_the_marks_is_seen(tmp_path, packing):
    outside = MARKED.replace(
        ANSWER, "{% generation %}{{ m['content'] }}{% endgeneration %}{{ ' <end> ' }}"
    )
    made = trainer(tmp_path, tokenizer(outside), CHATS, packing=packing)
    the(
        doctor.batch(made, 6),
        "error",
        "<end> is not learnt in 12 of 12 answers",
        "put <end> before {% endgeneration %}",
    )
    inside = outside.replace(
        "{% endgeneration %}{{ ' <end> ' }}", "{{ ' <end>' }}{% endgeneration %}{{ ' ' }}"
    )
    made = trainer(tmp_path, tokenizer(inside), CHATS, packing=packing)
    assert doctor.batch(made, 6) == []
    assert all(row.count("<end>") == 2 * row.count("w") / 5 for row in learnt(made))


def test_ends_that_are_masked_in_some_answers_of_a_packed_row_are_seen(tmp_path):
    made = trainer(tmp_path, tokenizer(), CHATS, packing=True, max_length=256)
    [row] = made.train_dataset
    hidden = [i for i, token in enumerate(row["labels"]) if token == 4][:3]
    labels = [-100 if i in hidden else label for i, label in enumerate(row["labels"])]
    made.train_dataset = Dataset.from_list([{**row, "labels": labels}])
    the(
        doctor.batch(made, 6),
        "warning",
        "<end> is not learnt in 3 of 12 answers",
        "its label is -100",
        "let the mask of each answer hold <end>",
    )
    labels = [row["input_ids"][i] if i in hidden else label for i, label in enumerate(labels)]
    made.train_dataset = Dataset.from_list([{**row, "labels": labels}])
    assert doctor.batch(made, 6) == []


@BOTH
def test_a_cut_answer_and_a_cut_conversation_are_seen(tmp_path, packing):
    for rows, texts in (
        ([*PAIRS, pair(3, 3, 60)], ("<end> is not learnt in 1 of 7", "max_length cuts them off")),
        ([*CHATS[:4], {"messages": [*chat()["messages"], turn("user", 20), turn("assistant", 3)]}],
         ("1 of 5 examples are cut off at max_length, 32",)),
    ):  # fmt: skip
        made = trainer(tmp_path, tokenizer(), rows, packing=packing, max_length=32)
        for given in (len(rows), rows):
            the(doctor.batch(made, given), "warning", *texts, "raise SFTConfig(max_length=...)")
        made = trainer(tmp_path, tokenizer(), rows, packing=packing, max_length=128)
        assert doctor.batch(made, rows) == []


@BOTH
@pytest.mark.parametrize("rows", [[*CHATS, chat(9, answer=0)], [*PAIRS, pair(9, answer=0)]])
def test_an_empty_answer_is_seen(tmp_path, rows, packing):
    made = trainer(tmp_path, tokenizer(), rows, packing=packing)
    the(doctor.batch(made, rows), "warning", "1 of ", "answers are empty", "leave these")
    made = trainer(tmp_path, tokenizer(), rows[:-1], packing=packing)
    assert doctor.batch(made, rows[:-1]) == []


@BOTH
def test_answers_but_the_last_that_are_not_learnt_are_seen(tmp_path, packing):
    last = MARKED.replace("m['role'] == 'assistant'", "m['role'] == 'assistant' and loop.last")
    made = trainer(tmp_path, tokenizer(last), CHATS, packing=packing)
    the(doctor.batch(made, 6), "warning", "6 of 12 answers are not learnt", "every assistant turn")
    made = trainer(tmp_path, tokenizer(last.replace(" and loop.last", "")), CHATS, packing=packing)
    assert doctor.batch(made, 6) == []


def test_answers_that_stand_in_a_prompt_are_not_to_be_learnt(tmp_path):
    rows = [{"prompt": row["messages"][:4], "completion": row["messages"][4:]} for row in CHATS]
    for packing in (False, True):
        made = trainer(tmp_path, tokenizer(), rows, packing=packing)
        assert doctor.batch(made, rows) == []


def test_an_answer_that_is_learnt_in_part_is_seen(tmp_path):
    made = trainer(tmp_path, tokenizer(), CHATS)
    rows = [*made.train_dataset]
    first = next(i for i, label in enumerate(rows[0]["labels"]) if label != -100)
    rows[0]["labels"][first] = -100
    made.train_dataset = Dataset.from_list(rows)
    the(doctor.batch(made, 6), "warning", "1 of 12 answers are learnt in part", "first token")
    rows[0]["labels"][first] = rows[0]["input_ids"][first]
    made.train_dataset = Dataset.from_list(rows)
    assert doctor.batch(made, 6) == []


def test_padding_that_is_the_stop_is_seen_and_the_fix_is_python(tmp_path):
    def make(tok):
        return transformers.Trainer(
            model=tiny_sft.model(len(tok), 4),
            args=transformers.TrainingArguments(
                output_dir=str(tmp_path), use_cpu=True, report_to="none"
            ),
            train_dataset=Dataset.from_list([tok("<bos> user w1 <end> assistant w2 <end>")] * 3),
            processing_class=tok,
            data_collator=transformers.DataCollatorForLanguageModeling(tok, mlm=False),
        )

    tok = tokenizer(pad_token="<end>")
    found = the(doctor.batch(make(tok)), "error", "<end> is the padding token too")
    exec(found.fix.partition(",")[0], {"tokenizer": tok})
    assert tok.pad_token_id not in (2, 3, 4)
    made = make(tok)
    assert doctor.batch(made) == []
    assert made.data_collator([made.train_dataset[0]])["labels"][0].tolist().count(4) == 2


def test_looking_changes_nothing(tmp_path):
    made = trainer(tmp_path, tokenizer(), CHATS, packing=True)
    before = torch.get_rng_state(), made.train_dataset[:], made.model.training
    doctor.batch(made, CHATS)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (made.train_dataset[:], made.model.training) == before[1:]

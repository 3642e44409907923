"""Notebook 06 on a random model of one layer: every cell can be run twice, and again at the end."""

import dataclasses
import json
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
import tiny_run
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from qlora_kit import doctor, hub, models
from qlora_kit.data import tickets
from qlora_kit.paths import DATA, ROOT
from qlora_kit.training import quirks, runs

BOOK = json.loads((ROOT / "notebooks" / "06_train_gemma.ipynb").read_text(encoding="utf-8"))
CELLS = {c["id"]: "".join(c["source"]) for c in BOOK["cells"] if c["cell_type"] == "code"}
AT_ONCE = [name for name in CELLS if name != "set-up"]  # that one is for Colab
# What asks the untrained model cannot be asked again once it is trained; `settings` to `train`
# would begin another run.
AGAIN = AT_ONCE[AT_ONCE.index("loss") :]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, smollm2):
    """The short profile of the notebook, with fewer rows, on a random model with real words."""
    _, tokenizer = smollm2
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    short = models.PROFILES["smollm2-135m-short"]
    recipe = dataclasses.replace(short.recipe, rows=60, scored=24)
    return dataclasses.replace(short, recipe=recipe), folder


@pytest.fixture(scope="module")
def notebook(tiny, tmp_path_factory):
    """The names that notebook 06 has bound, each of its cells having been run twice in a row."""
    profile, folder = tiny
    place = tmp_path_factory.mktemp("notebook")
    exact = models.Dtypes("cpu", torch.float32, torch.float32)
    names = {"sys": sys}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_KIT_CACHE", str(place / "cache"))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.chdir(place)
        hub.remember(profile.hub[0], folder)
        patch.setattr(models, "pick_profile", lambda: profile)
        patch.setattr(models, "pick_dtypes", lambda: exact)
        patch.setattr(runs, "home", lambda: place / "runs")
        for name in AT_ONCE:
            for _ in range(2):
                exec(compile(CELLS[name], name, "exec"), names)
            plt.close("all")
        yield names
        while runs.locks:
            runs.locks.pop().release()


def test_every_cell_runs_twice_in_a_row(notebook):
    assert notebook["report"]["base_unchanged"]
    assert notebook["report"]["steps"] == notebook["trainer"].state.global_step > 10


def test_every_cell_runs_again_when_all_have_run(notebook):
    before = json.loads(json.dumps(notebook["report"]))
    for name in AGAIN:
        exec(compile(CELLS[name], name, "exec"), notebook)
        plt.close("all")
    after = json.loads((notebook["run"] / "report.json").read_text())
    changing = {"peak_memory_bytes", "settings"}
    assert {k: v for k, v in after.items() if k not in changing} == {
        k: v for k, v in before.items() if k not in changing
    }


def test_the_report_compares_in_pairs(notebook):
    paired = notebook["report"]["paired"]
    assert list(paired) == [name for name in notebook["report"]["rivals"] if name != "QLoRA"]
    for result in paired.values():
        assert result["both"] + result["ours"] + result["theirs"] + result["neither"] == 24
        assert result["verdict"] in ("better", "worse", "not settled on these rows")


def test_the_adapters_folder_and_the_bases_name_are_enough(notebook, tiny):
    adapter = notebook["adapter"]
    saved = AutoTokenizer.from_pretrained(adapter)
    turns = tickets.prompt("My kettle leaks.")
    asked = {"add_generation_prompt": True, "tokenize": False}
    assert saved.apply_chat_template(turns, **asked) == notebook["tokenizer"].apply_chat_template(
        turns, **asked
    )
    assert saved.pad_token == tiny[0].pad_token
    stops = json.loads((adapter / "generation_config.json").read_text())["eos_token_id"]
    assert saved.convert_ids_to_tokens(stops) == list(tiny[0].stop_tokens)
    assert doctor.adapter(adapter, notebook["trainer"].model) == []
    assert len(notebook["there"]) == 20
    assert sum(notebook["same"]) >= 15


def test_the_new_process_takes_nothing_but_the_base_from_the_profile(notebook):
    """Its prompts follow the folder: with another template in there, it asks in other words."""
    template = notebook["adapter"] / "chat_template.jinja"
    whole = template.read_text()
    ask = "answers = scoring"
    script = (
        notebook["script"]
        .read_text()
        .replace(ask, f"print(tokenizer.apply_chat_template(prompts[0], tokenize=False))\n{ask}")
    )
    template.write_text("{% for m in messages %}TURN {{ m['content'] }}{% endfor %}")
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, notebook["profile"].name, notebook["adapter"]],
            input=json.dumps(["It leaks."]),
            capture_output=True,
            text=True,
        )
    finally:
        template.write_text(whole)
    assert done.returncode == 0, done.stderr
    assert "TURN Label the ticket.TURN It leaks." in done.stdout


def test_a_base_without_a_template_gets_one_in_the_folder(tmp_path):
    """As Gemma's, whose tokenizer brings none."""
    tokenizer = tiny_run.make_tokenizer(tickets.load(DATA / "tickets_dev.jsonl")[:20])
    tokenizer.chat_template = models.PROFILES["gemma-3-270m"].chat_template
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    turns = [{"role": "user", "content": "a kettle"}]
    text = again.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<bos><start_of_turn>user\na kettle<end_of_turn>\n<start_of_turn>model\n"


def fresh(tmp_path):
    trainer = tiny_run.make_trainer(tmp_path)
    quirks.start_over(trainer)
    return trainer


def test_a_second_training_begins_where_the_first_did(tmp_path):
    trainer = fresh(tmp_path)
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    seen = []
    for _ in range(2):
        trainer.train()
        seen.append((tiny_run.losses(trainer), tiny_run.adapter(trainer)))
    assert seen[1][0] == pytest.approx(seen[0][0], rel=1e-5)
    torch.testing.assert_close(seen[1][1], seen[0][1])


def test_a_trainer_of_its_own_accord_goes_on_with_what_the_first_training_left(tmp_path):
    trainer = tiny_run.make_trainer(tmp_path)
    trainer.train()
    first = tiny_run.losses(trainer)
    trainer.train()
    assert tiny_run.losses(trainer)[0] < first[0] - 0.1, "the quirk can go"


def test_a_second_trainer_gets_the_plain_model(tmp_path):
    trainer = tiny_run.make_trainer(tmp_path)
    base = trainer.model.get_base_model()
    names = [name for name, _ in base.named_parameters()]
    assert any("lora_" in name for name in names)
    plain = quirks.without_adapter(base)
    assert plain is base and not hasattr(base, "peft_config")
    assert [n for n, _ in base.named_parameters()] == [
        name.replace(".base_layer", "") for name in names if "lora_" not in name
    ]
    assert quirks.without_adapter(plain) is plain
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    again = get_peft_model(plain, lora)
    assert not [n for n, _ in again.named_parameters() if n.count("lora_") > 1]

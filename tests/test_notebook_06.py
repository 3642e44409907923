"""Notebook 06 on a random model of one layer: every cell can be run twice."""

import dataclasses
import dis
import json
import shutil
import subprocess
import sys
import warnings

import matplotlib.pyplot as plt
import pytest
import tiny_run
import torch
import trl.trainer.utils
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from qlora_kit import doctor, hub, models
from qlora_kit.data import tickets
from qlora_kit.paths import DATA, ROOT
from qlora_kit.training import quirks, runs

BOOK = json.loads((ROOT / "notebooks" / "06_train_gemma.ipynb").read_text(encoding="utf-8"))
CELLS = {c["id"]: "".join(c["source"]) for c in BOOK["cells"] if c["cell_type"] == "code"}
NAMES = [name for name in CELLS if name != "set-up"]  # that one is for Colab
# Up to the training a cell is run twice in a row. Those after it are run again once all have run:
# so they meet what later ones have bound, and a run that is finished.
TWICE, AGAIN = NAMES[: NAMES.index("loss")], NAMES[NAMES.index("loss") :]


def execute(names, cells):
    for name in cells:
        exec(compile(CELLS[name], name, "exec"), names)
        plt.close("all")


def reads_and_binds(source):
    """The names that a cell takes from other cells, and those that it binds."""
    code = compile(source, "cell", "exec")
    read, bound, inner = set(), set(), [c for c in code.co_consts if hasattr(c, "co_consts")]
    for step in dis.get_instructions(code):
        if step.opname == "STORE_NAME":
            bound.add(step.argval)
        elif step.opname == "LOAD_NAME" and step.argval not in bound:
            read.add(step.argval)
    while inner:
        one = inner.pop()
        inner += [c for c in one.co_consts if hasattr(c, "co_consts")]
        steps = dis.get_instructions(one)
        read |= {s.argval for s in steps if s.opname == "LOAD_GLOBAL"} - bound
    return read, bound


def test_no_cell_takes_away_a_name_that_an_earlier_one_wants_again():
    cells = [(name, *reads_and_binds(CELLS[name])) for name in NAMES]
    for place, (name, read, _) in enumerate(cells):
        known = set().union(*(bound for _, _, bound in cells[:place]))
        for later, _, bound in cells[place + 1 :]:
            assert not read & known & bound, (name, later)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, smollm2):
    """The short profile of the notebook, with fewer rows, on a random model with real words."""
    _, tokenizer = smollm2
    folder = tmp_path_factory.mktemp("tiny")
    tiny_run.tiny_llama(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    short = models.PROFILES["smollm2-135m-short"]
    recipe = dataclasses.replace(short.recipe, rows=60, scored=24, answered=8)
    return dataclasses.replace(short, recipe=recipe), folder


@pytest.fixture(scope="module")
def notebook(tiny, tmp_path_factory):
    """The names that notebook 06 binds; the cells of TWICE have been run twice."""
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
        patch.setattr(models, "pick_dtypes", lambda begun=None: exact)
        patch.setattr(runs, "home", lambda: place / "runs")
        # the trainer's cell changes it, for all that comes
        patch.setattr(trl.trainer.utils, "_use_triton", trl.trainer.utils._use_triton)
        for name in TWICE:
            execute(names, [name, name])
        execute(names, AGAIN)
        yield names
        while runs.locks:
            runs.locks.pop().release()


def test_the_cells_up_to_the_training_run_twice_and_change_no_base(notebook):
    assert notebook["report"]["base_unchanged"]
    assert notebook["report"]["steps"] == notebook["trainer"].state.global_step > 10


def test_the_cells_after_it_run_again_and_find_the_same(notebook):
    before = json.loads(json.dumps(notebook["report"]))
    execute(notebook, AGAIN)
    after = json.loads((notebook["run"] / "report.json").read_text())
    changing = {"peak_memory_bytes", "settings", "versions"}
    assert {k: v for k, v in after.items() if k not in changing} == {
        k: v for k, v in before.items() if k not in changing
    }


def test_a_finished_run_can_be_trained_again_and_learns_the_same(notebook):
    first = list(notebook["losses"])
    execute(notebook, ["train", "facts", "report"])
    assert notebook["checkpoint"] is None
    assert notebook["losses"] == pytest.approx(first, rel=1e-4)
    assert not (notebook["run"] / "checkpoints").exists()


def test_the_report_compares_in_pairs(notebook):
    paired = notebook["report"]["paired"]
    assert list(paired) == ["category_accuracy", "exact_match"]
    for against in paired.values():
        assert list(against) == [name for name in notebook["report"]["rivals"] if name != "QLoRA"]
        for result in against.values():
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
    assert "TURN File the ticket.TURN It leaks." in done.stdout


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
        shutil.rmtree(tmp_path / "checkpoints")  # as the end of a run does
    assert seen[1][0] == pytest.approx(seen[0][0], rel=1e-5)
    torch.testing.assert_close(seen[1][1], seen[0][1])


def test_a_trainer_of_its_own_accord_goes_on_with_what_the_first_training_left(tmp_path):
    trainer = tiny_run.make_trainer(tmp_path)
    trainer.train()
    first = tiny_run.losses(trainer)
    shutil.rmtree(tmp_path / "checkpoints")  # or the trainer takes the new ones for older ones
    (tmp_path / "checkpoints").mkdir()
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
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        get_peft_model(plain, lora)
    with pytest.warns(UserWarning, match="a second time"):
        get_peft_model(plain, lora)

"""Gemma 3 1B in full size through notebook 06's own cells: random weights, real everything else."""

import json
import os
import subprocess
import sys

import pytest

from qlora_kit import hub, profiles
from qlora_kit.paths import ROOT

pytestmark = pytest.mark.full

# Executes cells of notebook 06 by their ids. What is cut down for a CPU: rows, steps and tickets
# that are answered. The weights are found because the cache says that the hub's are in that folder.
CELLS = """
import dataclasses, json, sys, time
from pathlib import Path
from qlora_kit import memory, models, profiles

run, book = sys.argv[1:]
book = json.loads(Path(book).read_text(encoding="utf-8"))
cells = {cell["id"]: "".join(cell["source"]) for cell in book["cells"]}
recipe = dataclasses.replace(profiles.GEMMA_1B.recipe, rows=40, scored=2, answered=0)
models.PROFILES["gemma-3-1b"] = dataclasses.replace(profiles.GEMMA_1B, recipe=recipe)
names, seconds = {"sys": sys}, {}


def execute(*ids):
    for name in ids:
        start = time.perf_counter()
        exec(cells[name], names)
        seconds[name] = round(time.perf_counter() - start, 1)


execute("settings")
names["run_dir"] = run
execute("imports", "profile", "data", "load", "quantised", "examples", "lora", "config")
names["config"].max_steps = 2
names["config"].eval_strategy = "no"  # the dev rows would take a minute
execute("run", "trainer", "label-mask", "trainer-checked", "train", "facts", "budget")
execute("save", "small", "script", "new-process", "process-facts")
adapter = names["file"]
print(json.dumps({
    "moved": sum(int(tensor.any()) for name, tensor in adapter.items() if "lora_B" in name),
    "steps": names["trainer"].state.global_step,
    "losses": names["losses"],
    "tied": names["model"].lm_head.weight is names["model"].get_input_embeddings().weight,
    "predicted": names["predicted"] / names["measured"],
    "seconds": seconds,
    "gigabytes": memory.peak_bytes() / 1e9,
}))
"""


def test_notebook_06_takes_gemma_3_1b_through_training_saving_and_loading(
    gemma_1b, tmp_path, monkeypatch
):
    monkeypatch.setenv("QLORA_KIT_CACHE", str(tmp_path / "cache"))
    hub.remember(profiles.GEMMA_1B.hub[0], gemma_1b)
    run = tmp_path / "run"
    run.mkdir()
    book = ROOT / "notebooks" / "06_train_gemma.ipynb"
    done = subprocess.run(
        [sys.executable, "-c", CELLS, run, book],
        env=os.environ | {"PYTHONPATH": str(ROOT), "QLORA_KIT_PROFILE": "gemma-3-1b"},
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert "profile gemma-3-1b on cpu" in done.stdout
    line = "trainable params: 13,045,760 || all params: 1,012,931,712 || trainable%: 1.2879"
    assert line in done.stdout
    for fact in (
        "the trainer kept every example: True",
        "the stop token is learnt: True",
        "every loss is finite: True",
        "every byte of the base is as before: True",
        "all that was trained is A and B: True",
        "saved: README.md adapter_config.json adapter_model.safetensors chat_template.jinja "
        "generation_config.json tokenizer.json tokenizer_config.json",
        "the file holds the trained adapter, bit for bit: True",
        "the base of the new process is the same, bit for bit: True",
    ):
        assert fact in done.stdout, fact
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["moved"] == 26 * 7
    assert seen["steps"] == 2 and seen["tied"]
    assert 11 < seen["losses"][0] < 14  # random weights: about the logarithm of 262,144, 12.5

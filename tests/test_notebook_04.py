"""What notebook 04 claims. nbval compares its outputs with the code's, this with what is known."""

import itertools
import json
import re

import matplotlib.pyplot as plt
import pytest
from accelerate.commands import estimate
from test_memory import measured, setup_of

from qlora_kit.paths import ROOT

BOOK = json.loads((ROOT / "notebooks" / "04_memory_budget.ipynb").read_text(encoding="utf-8"))
CELLS = {cell["id"]: cell for cell in BOOK["cells"]}
TEXT = "\n".join("".join(c["source"]) for c in BOOK["cells"] if c["cell_type"] == "markdown")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def source(name):
    return "".join(CELLS[name]["source"])


def define(*names):
    """The names that these cells bind when they run by themselves, after the imports."""
    bound = {}
    for name in ("imports", *names):
        exec(source(name), bound)
    return bound


def printed(name):
    """The lines that a cell printed, as stored."""
    streams = [out["text"] for out in CELLS[name]["outputs"] if out["output_type"] == "stream"]
    return "".join("".join(text) for text in streams).splitlines()


def test_the_accountings_add_up_to_the_published_sums():
    lines = printed("accountings")[1:]
    sums = [re.findall(r"[\d.]+", line)[-3:] for line in lines]
    assert [int(each) for each, _, _ in sums] == [16, 16, 12, 8]
    seven, large = 6_738_415_616, 65_285_660_672  # Llama 2 7B and LLaMA 65B
    for each, small, big in sums:
        assert float(small) == pytest.approx(int(each) * seven / 1e9, abs=0.05)
        assert float(big) == pytest.approx(int(each) * large / 1e9, abs=0.05)
    assert float(sums[2][2]) > 780  # QLoRA paper, section 1


def test_each_rung_of_the_ladder_is_lower_than_the_one_before():
    gib = [float(re.search(r"([\d.]+) GiB", line)[1]) for line in printed("ladder")]
    assert len(gib) == 8
    assert gib == sorted(gib, reverse=True)
    saved = [a - b for a, b in itertools.pairwise(gib)]
    assert max(saved) == saved[1], "LoRA"
    halved = 2 * 6_738_415_616 / 2**30  # Llama 2 7B from float32 to 16 bits, which is not LoRA's
    assert saved[2] == pytest.approx(halved, rel=0.15) and saved[1] > 7 * halved


def test_the_scratch_space_of_adam_is_drawn_by_its_name():
    bound = define("accountings", "ladder", "ladder-picture")
    stacks, ladder = bound["stacks"], bound["ladder"]
    for name, budget in ladder.items():
        assert sum(stacks[name].values()) == budget.peak_allocated
        assert ("Adam's scratch space" in stacks[name]) == (budget.moment == "step")
    full = stacks["full fine-tuning"]
    assert full["gradients"] == 4 * bound["parameters"]("Llama-2-7b-hf")
    assert full["Adam's scratch space"] == full["gradients"]


def test_the_text_says_what_the_cells_computed():
    gib = [float(re.search(r"([\d.]+) GiB", line)[1]) for line in printed("ladder")]
    assert f"Double quantisation is {gib[4] - gib[5]:.1f} GiB" in TEXT
    assert f"computes the logits in pieces, is {gib[5] - gib[6]:.1f} GiB" in TEXT
    assert f"leaves {4 * 6_738_415_616 / 2**30:.0f} GiB of weights in float32" in TEXT
    copies = re.search(r"GiB, (\d+) times", "\n".join(printed("xray-plain")))[1]
    one, there = (
        float(re.search(r, "\n".join(printed("xray-plain")))[1])
        for r in (r"in float32, ([\d.]+) GiB", r"a T4 has ([\d.]+)")
    )
    assert copies == "3" and one < there < 2 * one
    worst = re.search(r"([\d.]+)% at worst", "\n".join(printed("t4-errors")))[1]
    assert float(worst) < 2
    low, high = (float(x) for x in re.findall(r"[\d.]+", printed("xray-tiled")[0])[:2])
    assert round(high / low) == 6 and "ends at a sixth of the other" in TEXT
    full, eight, paged, lora, lora_eight, lora_paged = (
        float(re.search(r"([\d,.]+) MiB", line)[1].replace(",", "")) / 1024
        for line in printed("optimizers")
    )
    assert f"8 bits are worth {full - eight:.0f} GiB and paging another {eight - paged:.0f}" in TEXT
    assert lora - lora_paged == pytest.approx(1 / 4, abs=0.03)
    assert lora - lora_eight > 0.8 * (lora - lora_paged)


def test_65b_fits_48_gib_alone_and_33b_fits_24():
    rows = {line.split()[0]: line.split()[3:] for line in printed("sizes")[1:]}
    assert rows["llama-65b"] == ["no"] * 5 + ["yes"]
    assert rows["llama-30b"] == ["no"] * 4 + ["yes"] * 2
    assert rows["llama-13b"] == ["no"] * 2 + ["yes"] * 4
    assert rows["Llama-2-7b-hf"] == ["yes"] * 6


def test_what_accelerate_says_is_what_its_command_says(monkeypatch):
    says, gemma = (define("accelerate")[name] for name in ("accelerate_says", "gemma"))

    def empty(*_, **__):
        with estimate.init_empty_weights():
            config = estimate.AutoConfig.for_model(**gemma.config)
            return estimate.AutoModel.from_config(config)

    monkeypatch.setattr(estimate, "create_empty_model", empty)
    arguments = estimate.estimate_command_parser().parse_args(["x", "--dtypes", "int4"])
    [[_, _, total, _]] = estimate.gather_data(arguments)
    assert says(gemma) == total


def test_the_cells_set_the_measured_steps_up_as_the_tests_do():
    cells = define("t4-rows")
    assert [cells["setup_of"](row) for row in measured()] == [setup_of(row) for row in measured()]


def test_the_calculator_takes_the_formats_of_the_gpu_and_says_how_sure_it_is():
    cells = define("calculator")
    values = {"seq": 1024, "batch": 4, "rank": 16, "optimizer": "adamw_torch", "loss": "tiled"}
    _, on_t4 = cells["move"]("gemma-3-1b-pt", "T4", "qlora", checkpointing=True, **values)
    assert on_t4.startswith("fits: 3.4 GiB of 14.6")
    assert "float32 between layers, float16 in 4-bit products, no autocast" in on_t4
    _, on_l4 = cells["move"]("gemma-3-1b-pt", "L4", "qlora", checkpointing=True, **values)
    assert on_l4.startswith("fits: 2.") and "bfloat16 between layers" in on_l4


def test_states_appear_in_the_first_step_and_stay():
    before, one, two = map(int, re.findall(r"(\d+) MiB", printed("watch")[0]))
    # Two float32 for each parameter of the smaller embedding and two layers, to a MiB.
    parameters = 16384 * 576 + 2 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576) + 576
    assert before == 0
    assert one == two == pytest.approx(8 * parameters / 2**20, abs=1)

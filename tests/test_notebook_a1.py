"""What comparing outputs cannot see in appendix a1: what is known of formats, and that the stored
results of Gemma are shown where it cannot be had, and are those of a real run."""

import ast
import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from qlora_kit import memory, models
from qlora_kit.data import stored
from qlora_kit.paths import ROOT


def book(name):
    return json.loads((ROOT / "notebooks" / name).read_text(encoding="utf-8"))["cells"]


BOOK = book("a1_number_formats.ipynb")
CELLS = {cell["id"]: cell for cell in BOOK}


def source(cell):
    return "".join(cell["source"])


def printed(name):
    """The lines that a cell printed, as stored."""
    streams = [out["text"] for out in CELLS[name]["outputs"] if out["output_type"] == "stream"]
    return "".join("".join(text) for text in streams).splitlines()


def percents(line):
    return [int(number) for number in re.findall(r"(\d+)%", line)]


def integers(text):
    return [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", text)]


def test_the_tiny_model_is_that_of_notebook_03():
    def statements(cell):
        return [ast.unparse(part) for part in ast.parse(source(cell)).body]

    third = {
        part
        for cell in book("03_qlora_layer_by_hand.ipynb")
        if cell["cell_type"] == "code" and cell["id"] != "set-up"
        for part in statements(cell)
    }
    names = "tiny-rows", "tiny-model", "tiny-loop", "tiny-adapters"
    assert [part for name in names for part in statements(CELLS[name]) if part not in third] == []


def test_updates_vanish_as_the_formats_say():
    lost = dict(line.split() for line in printed("vanish"))
    assert float(lost["float32"]) == pytest.approx(0.19375)
    assert float(lost["bfloat16"]) == 0.09375
    assert float(lost["float16"]) > 0.2
    last = {line[:31].strip(): percents(line) for line in printed("types")[1:]}
    assert last["bfloat16"] == sorted(last["bfloat16"]), "more and more, as the rate falls"
    assert last["bfloat16"][-1] > 50 > last["float16, scaled"][-1] > last["float32"][-1]
    _, still, _, gap = printed("types-facts")
    assert "bfloat16 more than 0.5, float32 less than 0.02" in still
    assert "bfloat16 more than 0.005, " in gap and "less than 0.25 of that" in gap


def test_the_table_of_formats_is_right():
    rows = [line.split() for line in printed("spacing")[1:]]
    for dtype, (name, size, at_1, at_tenth, largest, smallest) in zip(
        (torch.float32, torch.bfloat16, torch.float16), rows, strict=True
    ):
        assert name == str(dtype)[6:] and int(size) == dtype.itemsize
        bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
        for value, distance in ((1.0, at_1), (0.1, at_tenth)):
            here = torch.tensor(value, dtype=dtype)
            following = (here.view(bits) + 1).view(dtype)
            assert float(distance) == pytest.approx((following.double() - here).item(), rel=0.05)
        assert float(largest) == pytest.approx(torch.finfo(dtype).max, rel=5e-3)
        least = torch.ones(1, dtype=bits).view(dtype).double().item()
        assert float(smallest) == pytest.approx(least, rel=0.05)


def test_float16_destroys_an_adapter_in_one_step():
    assert printed("float16")[0].endswith(": 0.0")
    assert "100% of A is NaN, and more than half of B infinite" in printed("float16")[1]


def test_peft_keeps_adapters_in_float32_unless_told_otherwise():
    assert [line.split()[-1] for line in printed("peft")] == ["torch.float32", "torch.bfloat16"]


STORED = json.loads((ROOT / "data" / "gemma_float16.json").read_text(encoding="utf-8"))


def cells(*names, **given):
    """The names that these cells bind, with the `given` ones bound before."""
    for name in names:
        exec(source(CELLS[name]), given)
    return given


def section(**given):
    """What the sections on Gemma bind, without training anything before them."""
    from matplotlib import pyplot as plt

    plt.switch_backend("agg")
    formats = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    names = [c["id"] for c in BOOK if c["cell_type"] == "code"]
    names = names[names.index("gemma-ready") :]
    bound = cells("imports", *names, **formats, **given)
    plt.close("all")
    return bound


def test_where_gemma_cannot_be_had_the_stored_results_are_shown(cache, monkeypatch, capsys):
    def load(*_, **__):
        raise AssertionError("nothing may be loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    bound = section()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "Gemma 3 270M is not on this machine: you see the results of an earlier run."
    )
    assert json.dumps(bound["seen"]) == json.dumps(STORED["forward"])
    for name in ("gemma-loss", "gemma-loss-facts", "gemma-stream", "gemma-facts", "gemma-epsilon"):
        assert "\n".join(printed(name)) in "\n".join(lines), name


def test_where_memory_is_short_the_section_says_so(monkeypatch, capsys):
    monkeypatch.setattr(models, "cached", lambda profile: "somewhere")
    monkeypatch.setattr(memory, "free_bytes", lambda: 1.8e9)
    assert not section()["possible"]
    line = capsys.readouterr().out.splitlines()[0]
    assert line == "1.8 GB are free, 3 are needed: you see the results of an earlier run."


def test_a_result_is_stored_only_if_a_maintainer_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "DATA", tmp_path)
    file = tmp_path / "x.json"
    monkeypatch.delenv("QLORA_KIT_STORE", raising=False)
    assert stored.measured("x", "a", lambda: (1, 2), possible=True) == [1, 2]
    assert not file.exists()
    monkeypatch.setenv("QLORA_KIT_STORE", "1")
    stored.measured("x", "a", lambda: {"b": float("nan")}, possible=True)
    stored.measured("x", "c", lambda: 3, possible=True)
    monkeypatch.delenv("QLORA_KIT_STORE")
    assert str(stored.measured("x", "a", None, possible=False)) == "{'b': nan}"
    assert stored.measured("x", "c", None, possible=False) == 3


def test_the_recipe_of_a_t4_is_as_good_as_bfloat16_and_float16_is_nan():
    loss = {name: row["loss"] for name, row in STORED["forward"].items()}
    stream = "NF4, stream float32, products float16"
    assert [name for name in loss if loss[name] != loss[name]] == ["float16", "NF4, all in float16"]
    assert loss[stream] == pytest.approx(loss["NF4, all in bfloat16"], rel=0.005)
    over = [i for i, size in enumerate(STORED["forward"]["float32"]["stream"]) if size > 65_504]
    assert over == list(range(7, 18))
    shown = integers(printed("gemma-stream")[0])
    assert shown == [103_821, 14, 65_504, 7, 17, 11]


def test_the_gradients_do_what_the_text_says():
    bins = STORED["backward"]["bins"]
    rows = {(row["tokens"], row["scale"]): row for row in STORED["backward"]["rows"]}
    zero = [sum(bins[: 35 + power]) for power in (13, 3, 17, 7)]  # 2**-25 times the divisor
    printed_zero = [
        float(share) for share in re.findall(r"([\d.]+)%", "\n".join(printed("gemma-underflow")))
    ]
    assert printed_zero == pytest.approx([100 * share for share in zero], abs=0.06)
    assert zero[0] == pytest.approx(0.2, abs=0.04)
    assert zero[2] > 0.5
    assert rows[8192, 1]["cosine"] > 0.998
    assert rows[131072, 1]["cosine"] < 0.95
    assert all(row["cosine"] > 0.9999 for (_, scale), row in rows.items() if scale == 1024)
    assert zero[1] < 0.02 and zero[3] < 0.02
    small, huge = rows[8192, 1]["below 1e-6"], rows[131072, 1]["below 1e-6"]
    assert 0.2 < small < 0.6 and huge > 0.9


def test_a_constant_in_the_gradient_matters_as_far_as_adams_epsilon_does():
    rows = [line.split() for line in printed("gemma-epsilon")[1:6]]
    for g, step, larger in ([float(number) for number in row] for row in rows):
        assert step == pytest.approx(g / (g + 1e-8), abs=6e-4)
        assert larger == pytest.approx(1024 * g / (1024 * g + 1e-8), abs=6e-4)
    assert rows[1][1:] == ["0.500", "0.999"]


@pytest.mark.full
def test_the_stored_results_of_gemma_are_those_of_a_real_run():
    """Memory and a minute: Gemma 3 270M in all six formats, and its gradients."""
    models.get_weights(models.PROFILES["gemma-3-270m"])
    bound = section()
    assert bound["possible"], "needs 3 GB"
    for name, row in STORED["forward"].items():
        now = bound["seen"][name]
        assert now["tokens"] == row["tokens"]
        assert now["loss"] == pytest.approx(row["loss"], rel=0.01, nan_ok=True), name
    gemma, largest = bound["load_gemma"](torch.float32, None), []
    for layer in gemma.model.layers:  # the text: it is in the vector of <bos>, in every text
        layer.register_forward_hook(lambda *call: largest.append(call[-1][0].abs().amax(dim=-1)))
    gemma(torch.tensor([[gemma.config.bos_token_id, 1000, 2000, 3000]]))
    assert all(sizes.argmax() == 0 for sizes in largest)
    stored_stream = STORED["forward"]["float32"]["stream"]
    assert [sizes[0].item() for sizes in largest] == pytest.approx(stored_stream, rel=1e-3)
    now = bound["seen"]["float32"]["stream"]
    assert now == pytest.approx(stored_stream, rel=1e-3)
    assert bound["back"]["learnt"] == STORED["backward"]["learnt"]
    assert bound["back"]["bins"] == pytest.approx(STORED["backward"]["bins"], abs=1e-3)
    for now, row in zip(bound["back"]["rows"], STORED["backward"]["rows"], strict=True):
        assert now == pytest.approx(row, rel=0.02)

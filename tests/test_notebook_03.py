"""What notebook 03 claims. nbval compares its outputs with the code's, this with what is known."""

import ast
import json
import math
import re

import pytest
import torch
from torch import nn

from qlora_kit import nf4, qlora
from qlora_kit.paths import ROOT

BOOK = json.loads((ROOT / "notebooks" / "03_qlora_layer_by_hand.ipynb").read_text(encoding="utf-8"))
CELLS = {cell["id"]: cell for cell in BOOK["cells"]}
TEXT = "\n".join("".join(c["source"]) for c in BOOK["cells"] if c["cell_type"] == "markdown")


def source(name):
    return "".join(CELLS[name]["source"])


def define(*names):
    """The functions and classes that these cells define."""
    names_of_cells = {"torch": torch, "nn": nn, "math": math, "nf4": nf4}
    for name in names:
        kinds = ast.FunctionDef, ast.ClassDef
        body = [part for part in ast.parse(source(name)).body if isinstance(part, kinds)]
        exec("\n".join(map(ast.unparse, body)), names_of_cells)
    return names_of_cells


def printed(name):
    """The lines that a cell printed, as stored."""
    streams = [out["text"] for out in CELLS[name]["outputs"] if out["output_type"] == "stream"]
    return "".join("".join(text) for text in streams).splitlines()


def percents(line):
    return [int(number) for number in re.findall(r"(\d+)%", line)]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def results(layer, x, products):
    """Output, and the gradients of x, A and B."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=products):
        y = layer(x)
    y.float().square().sum().backward()
    return y, x.grad, layer.A.grad, layer.B.grad


@pytest.mark.parametrize("products", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_layer_of_the_cells_is_the_package_s_layer(dtype, products):
    weight = random(48, 80)
    torch.manual_seed(0)
    ours = define("function", "layer")["QLoRALinear"](weight, rank=4, alpha=6)
    torch.manual_seed(0)
    kit = qlora.QLoRALinear(weight, rank=4, alpha=6)
    assert torch.equal(ours.A, kit.A), "the start is the same"
    assert torch.equal(ours.B, kit.B) and not ours.B.any()
    assert ours.scaling == kit.scaling
    assert torch.equal(ours.weight.packed, kit.base.weight.packed)
    assert torch.equal(ours.weight.absmax, kit.base.weight.absmax)
    for layer in (ours, kit):
        layer.B.data = random(48, 4, seed=1)
        layer.to(dtype)
    x = random(3, 5, 80, seed=2)
    for mine, theirs in zip(results(ours, x, products), results(kit, x, products), strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)


def test_the_layer_and_its_check_are_about_forty_lines():
    lines = [line for name in ("function", "layer", "check") for line in source(name).splitlines()]
    assert "in about forty lines" in TEXT and 35 <= len(lines) <= 45


def test_the_layer_gives_the_libraries_numbers_and_keeps_nothing():
    of_y, of_x = map(float, re.findall(r"by ([\d.]+)", printed("check")[0]))
    assert max(of_y, of_x) < 1e-5
    assert printed("check")[1].startswith("kept: 0 bytes")
    assert int(re.search(r"kept: ([\d,]+)", printed("kept")[0])[1].replace(",", "")) == 4 * 576**2
    codes, *rest = printed("equal")
    assert codes.startswith("0 of ") and len(rest) == 4
    assert all("less than 1e-06" in line for line in rest)


def test_a_4_bit_base_costs_less_than_a_twentieth_of_what_was_learnt():
    learnt, cost, changed = printed("seeds-facts")
    assert "more than a third" in learnt and "less than 5%" in cost and changed.startswith("0 ")
    differences = [float(line.split()[-1]) for line in printed("seeds")[1:]]
    assert len(differences) == 3 and max(differences) < 0.05


def test_8_x_8_has_the_lines_of_the_article_and_says_what_they_leave_out():
    pairs = [re.findall(r"[\d.]+", line) for line in printed("eight")[:3]]
    assert pairs == [["0.0312", "32"], ["0.1250", "128"], ["0.1562", "160"]]
    counted = [int(re.search(r"\d+(?= bytes)", line)[0]) for line in printed("eight")[-4:]]
    # A scale; an 8-bit scale with its own float32 scale and offset; 36 + 128; 64 in 16 bits.
    assert counted == [4, 1 + 4 + 4, 32 + 4 + 128, 128]


def test_the_base_outweighs_the_adapter_from_where_the_text_says():
    def heavier(n, rank):
        return n * n / 2 + 4 * math.ceil(n * n / 64) > 4 * rank * 2 * n

    turns = {rank: next(n for n in range(8, 9999) if heavier(n, rank)) for rank in (2, 16, 64)}
    assert f"at n = {turns[2]}," in TEXT and "near 14 r" in TEXT
    for rank, n in turns.items():
        assert n == pytest.approx(14 * rank, rel=0.04)
    shares = [(int(line.split()[0]), float(line.split()[-1])) for line in printed("turn")[1:]]
    assert [n for n, share in shares if share < 1] == [n for n, _ in shares if n >= turns[2]]


def test_gradients_are_counted_and_a_s_is_zero_once():
    lines = printed("gradients")
    assert [line.split("gradient ")[-1] for line in lines if "numbers" in line] == [
        *("all zero", "not zero"),
        *("not zero", "not zero"),
    ]
    assert f"{576 * 576:,}" in lines[-2]
    before, after = re.findall(r"[0-9a-f]{8}", lines[-1])
    assert before == after


def test_hardly_any_of_the_error_goes_in_the_weights_and_a_part_of_it_in_the_outputs():
    at_16 = printed("spectrum")[0].split().index("16") - 1
    random_left, weight_left = (percents(line)[at_16] for line in printed("spectrum")[1:3])
    [output_left] = [percents(line)[at_16] for line in printed("best")[1:]]
    assert random_left - 5 < weight_left < random_left
    assert weight_left == 93 and "takes 7 % of it away" in TEXT and "93 % of the error" in TEXT
    assert 50 < output_left < 70
    [of_real], [of_random] = map(percents, printed("directions")[1:])
    assert of_real > 60 and of_random < 10
    seven = {line.split()[0]: percents(line) for line in printed("seven")}
    assert len(seven) == 7 and min(pair[0] for pair in seven.values()) > 85
    assert seven["self_attn.q_proj"] == [weight_left, output_left]
    left = {name.split(".")[1]: pair[1] for name, pair in seven.items()}
    assert max(left, key=left.get) == "down_proj" and left["down_proj"] > 90
    assert min(left, key=left.get) == "k_proj" and 55 < left["k_proj"] < 65


def test_the_best_correction_is_the_best_for_the_outputs():
    cells = define("best")
    error = random(12, 20)
    inputs = random(500, 20, seed=1) * torch.logspace(0, -2, 20)
    size = (inputs @ error.T).norm()

    def left(correction):
        return ((inputs @ (error - correction).T).norm() / size).item()

    [found] = cells["best"](error, inputs, [3])
    assert torch.linalg.matrix_rank(found, atol=1e-4) == 3
    assert left(found) == pytest.approx(cells["left"](error, found, inputs))
    # What is left of outputs in rank 3 cannot be less than the SVD of the outputs leaves.
    bound = torch.linalg.svdvals(inputs @ error.T)
    assert left(found) == pytest.approx((bound[3:].norm() / bound.norm()).item(), rel=1e-3)
    U, S, Vh = torch.linalg.svd(error, full_matrices=False)
    plain = (U[:, :3] * S[:3]) @ Vh[:3]
    assert left(found) < 0.8 * left(plain)
    [same] = cells["best"](error, torch.eye(20), [3])
    torch.testing.assert_close(same, plain, atol=1e-4, rtol=0)


def test_in_bfloat16_a_thousand_updates_vanish():
    kept = dict(line.split() for line in printed("vanish"))
    assert float(kept["float32"]) == pytest.approx(0.19375)
    assert float(kept["bfloat16"]) == 0.09375

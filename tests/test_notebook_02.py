"""What notebook 02 claims. nbval compares its outputs with the code's, this with what is known."""

import json
import math
import re

import bitsandbytes
import pytest
import torch

from qlora_kit import nf4
from qlora_kit.paths import ROOT

BOOK = json.loads((ROOT / "notebooks" / "02_nf4_by_hand.ipynb").read_text(encoding="utf-8"))
CELLS = {cell["id"]: cell for cell in BOOK["cells"] if cell["cell_type"] == "code"}


def numbers(line):
    return [float(text.replace(",", "")) for text in re.findall(r"-?\d[\d,]*\.?\d*", line)]


def printed(name):
    """The lines that a cell printed, as stored."""
    streams = [out["text"] for out in CELLS[name]["outputs"] if out["output_type"] == "stream"]
    return "".join("".join(text) for text in streams).splitlines()


def table(name, columns):
    """The last `columns` numbers of each line below the headline, by the name before them."""
    rows = {}
    for line in printed(name)[1:]:
        words = line.split()
        rows[" ".join(words[:-columns])] = numbers(" ".join(words[-columns:]))
    return rows


def test_every_cell_that_compares_with_the_library_finds_it_equal():
    apart, differ = printed("code-book")[:2]
    assert numbers(apart)[-1] < 1e-6
    assert numbers(differ)[-2:] == [0, 16]
    assert [numbers(line)[0] for line in printed("pack")[-3:]] == [0, 0, 0]
    ours, bound, kits = (numbers(printed("double")[2].replace("nf4", ""))[i] for i in (0, 1, 2))
    assert ours < bound == 0.2 and kits == 0


def test_the_stored_levels_are_the_published_ones():
    lines = printed("code-book")[2:]
    published = bitsandbytes.functional.get_4bit_type("nf4", device="cpu").tolist()
    assert [float(line.split()[-1]) for line in lines] == [round(x, 4) for x in published]
    assert [line.split()[3] for line in lines] == [f"{code:04b}" for code in range(16)]


def test_the_errors_are_the_known_ones_and_lloyd_max_wins():
    errors = table("books", 4)
    known = {"Lloyd-Max": 0.0874, "NF4": 0.0920, "uniform": 0.1005, "INT4": 0.1076, "FP4": 0.1219}
    for name, value in known.items():
        assert errors[name][0] == pytest.approx(value, abs=2e-4), name
    for column in zip(*(errors[name][:3] for name in known), strict=True):
        assert list(column) == sorted(column), "best to worst, on normal and on real weights"
    real, normal = (numbers(line)[-1] for line in printed("error"))
    assert real == pytest.approx(normal, rel=0.02)


def test_nf4_errs_on_numbers_from_the_packagers_format_as_on_fresh_ones():
    fresh, again, packager, both = (numbers(line)[-1] for line in printed("q4-1"))
    assert again == pytest.approx(fresh, rel=0.005)
    assert both == pytest.approx(math.hypot(fresh, packager), rel=0.01), "independent errors"
    said = "".join(next(c["source"] for c in BOOK["cells"] if c["id"] == "text-q4-1"))
    assert f"{both:.4f}" in said


def test_no_matrix_of_the_model_is_far_from_the_best():
    best, worst = (numbers(line)[-1] for line in printed("layers-counted"))
    assert 0.09 < best < numbers(printed("error")[0])[-1] < worst < 1.15 * best


def test_nf4_is_worse_than_equal_steps_on_even_numbers_and_uses_codes_unequally():
    errors = table("books", 4)
    nf, uniform = errors["NF4"][3], errors["uniform"][3]
    # Exact for equal steps: a 15th of the range 2, over sqrt(12), beside a uniform's 1 / sqrt(3).
    assert uniform == pytest.approx(2 / 15 / math.sqrt(12) * math.sqrt(3), rel=0.03)
    assert nf > 1.3 * uniform
    for line in printed("use")[:2]:
        rarest, most, equal = numbers(line)[-3:]
        assert rarest < equal / 3 and most > 1.5 * equal


def test_errors_grow_with_the_block_and_no_code_book_is_best_for_all():
    rows = [numbers(line) for line in printed("block-sizes")[1:-1]]
    sizes, bits, nf, lloyd, uniform = map(list, zip(*rows, strict=True))
    assert bits == pytest.approx([4 + 32 / size for size in sizes], abs=6e-4)
    assert nf == sorted(nf) and lloyd == sorted(lloyd) and uniform == sorted(uniform)
    assert uniform[0] < nf[0], "blocks of 16"
    at = sizes.index(512)
    assert lloyd[at - 1] < nf[at - 1] and all(map(float.__lt__, nf[at:], lloyd[at:]))
    assert numbers(printed("block-sizes")[-1])[-1] > 4 * nf[sizes.index(64)]


def test_the_savings_are_those_of_the_bits_and_never_over_three_quarters():
    rows = table("claims", 4)
    bits = {
        "the codes alone": 4,
        "NF4": 4 + 32 / 64,
        "NF4, double quantisation": 4 + 8 / 64 + 32 / (64 * 256),
        "the same in a Linear4bit": 4 + 8 / 64 + 32 / (64 * 256) + 8 * (64 + 4 + 1024) / 884736,
    }
    assert set(rows) == set(bits)
    for name, expected in bits.items():
        stored, float32, bfloat16, saved = rows[name]
        assert stored == pytest.approx(expected, abs=6e-4)
        assert float32 == pytest.approx(32 / expected, abs=6e-3)
        assert bfloat16 == pytest.approx(16 / expected, abs=6e-3)
        assert saved == pytest.approx(100 * (1 - expected / 16), abs=0.06)
        assert saved <= 75
    assert numbers(printed("bytes")[0]) == [0.5, 0.127]


def test_double_quantisation_hardly_costs_anything():
    once, _, twice = numbers(printed("double")[1].replace("float32", ""))
    assert once <= twice <= 1.01 * once


def tensors(thing):
    """All tensors that a Linear4bit holds, found without knowing their names."""
    if isinstance(thing, torch.Tensor):
        yield thing.data
    state = getattr(thing, "quant_state", thing)
    for value in vars(state).values() if hasattr(state, "__dict__") else ():
        if isinstance(value, torch.Tensor) or type(value).__name__ == "QuantState":
            yield from tensors(value)


def kept(layer):
    return {t.data_ptr(): t.untyped_storage().nbytes() for t in tensors(layer.weight)}


def test_the_list_of_what_a_real_layer_keeps_is_complete():
    weight = torch.randn(1536, 576, generator=torch.Generator().manual_seed(0))
    layer = bitsandbytes.nn.Linear4bit(576, 1536, bias=False, quant_type="nf4")
    layer.load_state_dict({"weight": weight})
    found = kept(layer.to("cpu"))
    listed = [numbers(line)[-1] for line in printed("real-layer")[:-1]]
    assert sorted(found.values()) == sorted(listed)
    assert sum(listed[:4]) == nf4.quantize(weight, double_quant=True).nbytes


def test_the_bits_of_the_whole_model_are_those_of_the_loaded_model(smollm2):
    model, _ = smollm2
    layers = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    everything = sum(sum(kept(layer).values()) for layer in layers)
    quantised, total, bits = numbers(printed("whole-model")[0])
    assert (quantised, total) == (weights, model.num_parameters())
    assert bits == round(8 * everything / weights, 3)
    rest = sum(p.numel() for p in model.parameters() if p.dtype != torch.uint8)
    smaller = 2 * (weights + rest) / (everything + 2 * rest)
    assert numbers(printed("whole-model")[1])[0] == round(smaller, 2)

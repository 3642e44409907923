"""The benchmark command."""

import json
import os
import subprocess
import sys
import types

import pytest

from qlora_kit import bench, bootstrap, commands
from qlora_kit.__main__ import parser
from qlora_kit.bootstrap import ROOT


def test_a_ratio_is_the_librarys_seconds_over_the_kits():
    result = bench.bench_nf4(size=64, repetitions=2)
    for key in ("quantize", "dequantize"):
        library, kit = result[f"library_{key}_seconds"], result[f"{key}_seconds"]
        assert result[f"{key}_ratio"] == pytest.approx(library / kit)


def test_the_median_leaves_out_the_first_call_and_the_two_take_turns(monkeypatch):
    calls = []
    ours, theirs = lambda: calls.append("ours"), lambda: calls.append("theirs")
    # Seconds of each call: ours 100, 1, 2, 9, theirs 100, 4, 5, 6.
    lengths, clock = [100, 100, 1, 4, 2, 5, 9, 6], [0]
    for length in lengths:
        clock += [clock[-1] + length] * 2
    monkeypatch.setattr(bench, "time", types.SimpleNamespace(perf_counter=iter(clock).__next__))
    assert bench.medians(ours, theirs, repetitions=3) == [2, 5]
    assert calls == ["ours", "theirs"] * 4


def test_bench_prints_a_table_or_one_json_object(monkeypatch, capsys):
    result = bench.bench_nf4(size=64, repetitions=1)
    monkeypatch.setattr(bench, "bench_nf4", lambda: result)
    assert commands.bench(parser().parse_args(["bench", "nf4", "--json"])) == 0
    assert json.loads(capsys.readouterr().out) == result
    commands.bench(parser().parse_args(["bench", "nf4"]))
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table] == ["4096", "quantize", "dequantize"]
    assert table[1].endswith(f"{result['quantize_ratio']:.2f}x")


def test_only_known_benchmarks_are_taken(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["bench", "nf5"])
    assert "nf4" in capsys.readouterr().err


def test_bench_needs_no_more_than_the_core():
    assert bootstrap.EXTRAS["bench"] == []


@pytest.mark.full
def test_the_kit_quantises_as_fast_as_bitsandbytes_and_dequantises_at_0_4_of_its_speed():
    done = subprocess.run(
        [sys.executable, "-m", "qlora_kit", "bench", "nf4", "--json"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    result = json.loads(done.stdout)
    assert result["quantize_ratio"] >= 0.9, result
    assert result["dequantize_ratio"] >= 0.4, result

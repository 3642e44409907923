"""`python3 -m qlora_kit budget`: what it prints, and how it refuses."""

import json
import sys

import pytest
from test_memory import measured, name_of

from qlora_kit import __main__, bootstrap, memory
from qlora_kit.errors import KitError
from qlora_kit.memory import GIB, architectures


@pytest.fixture
def budget(monkeypatch, capsys):
    """Runs the command in this process; returns its status and what it printed."""

    def run(arguments):
        monkeypatch.setattr(sys, "argv", ["qlora_kit", "budget", *arguments.split()])
        monkeypatch.setattr(bootstrap, "ensure", lambda command: None)
        status = __main__.main()
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


# The command reconfigures its streams, which pytest's stand-ins cannot.
@pytest.fixture(autouse=True)
def streams(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, name), "reconfigure", lambda **_: None, raising=False)


def test_the_table_holds_every_term_and_a_verdict(budget):
    status, out, _ = budget("llama-2-7b --gpu T4 --batch 4 --seq 1024 --rank 16")
    assert status == 0
    for term in (*memory.TERMS, "peak allocated", "peak reserved", "CUDA context"):
        assert f"  {term}" in out
    assert "It fits on T4" in out
    assert "What helps" not in out


def test_what_does_not_fit_comes_with_what_helps(budget):
    _, out, _ = budget("gemma-3-1b --batch 4 --seq 2048 --loss plain")
    assert "does not fit on T4" in out
    assert "What helps:\n  with the tiled loss" in out


def test_json_holds_the_same_numbers(budget):
    options = "llama-2-7b --no-double-quant --targets q_proj,v_proj --optimizer adamw_8bit --json"
    _, out, _ = budget(options)
    answer = json.loads(out)
    assert [*answer] == [
        "peak_allocated_bytes",
        "peak_reserved_bytes",
        "peak_reserved_low_bytes",
        "nvidia_smi_bytes",
        "nvidia_smi_low_bytes",
        "nvidia_smi_high_bytes",
        "static_bytes",
        "terms",
        "fits",
    ]
    setup = memory.Setup(
        batch=4,
        double_quant=False,
        targets=("q_proj", "v_proj"),
        optimizer="adamw_8bit",
        prepare_kbit=True,
    )
    expected = memory.budget(architectures.find("Llama-2-7b-hf"), setup, memory.GPUS["T4"])
    assert answer["peak_allocated_bytes"] == expected.peak_allocated
    assert answer["terms"] == expected.terms
    assert sum(answer["terms"].values()) == answer["peak_allocated_bytes"]
    assert answer["static_bytes"] == expected.static
    assert answer["fits"] is True
    low, high = expected.peak_reserved
    assert (answer["peak_reserved_low_bytes"], answer["peak_reserved_bytes"]) == (low, high)
    context = memory.GPUS["T4"].context
    total = memory.needed(expected.peak_allocated, memory.GPUS["T4"])
    assert answer["nvidia_smi_bytes"] == total
    assert answer["nvidia_smi_low_bytes"] == low + context
    assert answer["nvidia_smi_high_bytes"] == high + context


@pytest.mark.parametrize(
    "options, values",
    [
        ("--no-prepare-kbit", {"prepare_kbit": False}),
        ("--prepare-kbit --autocast", {"autocast": True}),
        ("--no-prepare-kbit --no-autocast", {"prepare_kbit": False, "autocast": False}),
        ("--compute-dtype float32", {"compute_dtype": "float32"}),
        ("--loss plain --keep-outputs", {"loss": "plain", "keep_outputs": True}),
        ("--targets q_proj,embed_tokens,lm_head", {"targets": ("q_proj", *memory.OUTSIDE)}),
        ("--ddp", {"ddp": True}),
        ("--no-checkpointing", {"checkpointing": False}),
        (
            "--method lora --adapter-dtype bfloat16",
            {"method": "lora", "adapter_dtype": "bfloat16", "prepare_kbit": False},
        ),
        ("--loss plain --dropout 0.1", {"loss": "plain", "dropout": 0.1}),
        ("--attention eager --rank 8", {"attention": "eager", "rank": 8}),
    ],
)
def test_every_option_reaches_the_budget(budget, options, values):
    _, out, _ = budget(f"Llama-3.2-1B --json {options}")
    setup = memory.Setup(**{"batch": 4, "prepare_kbit": True} | values)  # a T4 has no bfloat16
    expected = memory.budget(architectures.find("Llama-3.2-1B"), setup, memory.GPUS["T4"])
    assert json.loads(out)["terms"] == expected.terms


def test_the_xray_answers_under_the_same_keys(budget, tmp_path):
    config = architectures.find("Llama-3.2-1B").config | {"num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _, out, _ = budget(f"{tmp_path} --xray --batch 1 --seq 64 --json")
    answer = json.loads(out)
    assert sum(answer["terms"].values()) == answer["peak_allocated_bytes"]
    assert answer["peak_reserved_bytes"] >= answer["peak_allocated_bytes"]
    assert answer["static_bytes"] > answer["terms"]["quantised weights"] > 0


def test_a_folder_with_a_config_is_a_model(budget, tmp_path):
    config = architectures.find("Llama-3.2-1B").config
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _, by_folder, _ = budget(f"{tmp_path} --json")
    _, by_name, _ = budget("Llama-3.2-1B --json")
    assert by_folder == by_name


def test_a_t4_trains_with_a_float32_stream_and_the_table_says_so(budget):
    """Gemma 3 1B as the kit trains it on a T4 needs 3.4 GiB, where bfloat16 would need 2.1."""
    _, out, _ = budget("gemma-3-1b --gpu T4 --json")
    assert json.loads(out)["nvidia_smi_bytes"] / GIB == pytest.approx(3.4, abs=0.05)
    _, out, _ = budget("gemma-3-1b --gpu T4 --no-prepare-kbit --json")
    assert json.loads(out)["nvidia_smi_bytes"] / GIB == pytest.approx(2.1, abs=0.05)
    _, out, _ = budget("gemma-3-1b --gpu T4")
    assert "float32 between layers, float16 in 4-bit products, no autocast" in out
    assert "--no-prepare-kbit" in out
    _, out, _ = budget("gemma-3-1b --gpu L4")
    assert "bfloat16 between layers, bfloat16 in 4-bit products, bfloat16 autocast" in out


def test_the_default_gpu_is_the_one_at_hand_else_a_t4(budget, monkeypatch):
    monkeypatch.setattr("qlora_kit.cli.budget.usable_cuda", lambda: False)
    _, out, _ = budget("gemma-3-1b")
    assert "on T4:" in out
    monkeypatch.setattr("qlora_kit.cli.budget.usable_cuda", lambda: True)
    monkeypatch.setattr(memory, "this_machine", lambda: memory.Gpu("card at hand", 8 * GIB))
    _, out, _ = budget("gemma-3-1b")
    assert "on card at hand:" in out and "bfloat16 between layers" in out


@pytest.mark.parametrize("row", [measured()[number] for number in (4, 14, 21)], ids=name_of)
def test_a_published_row_comes_out_of_the_command_line_within_2_per_cent(budget, row):
    method = "qlora --prepare-kbit" if row["weights"] == "nf4" else "lora --no-prepare-kbit"
    _, out, _ = budget(
        f"{row['model']} --gpu T4 --batch {row['batch']} --seq {row['seq']} --rank {row['rank']} "
        f"--targets q_proj,k_proj,v_proj,o_proj --attention {row['attention']} --loss plain "
        f"--keep-outputs --no-autocast --no-double-quant --method {method} --json"
    )
    said = json.loads(out)["peak_allocated_bytes"] / memory.MIB
    assert said == pytest.approx(float(row["allocated_mib"]), rel=0.02)


def test_a_model_type_without_formulas_is_seen_by_the_xray_and_told(budget, tmp_path):
    config = {
        "model_type": "phi3",
        "vocab_size": 1000,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "pad_token_id": 0,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _, out, _ = budget(f"{tmp_path} --batch 1 --seq 64 --rank 4")
    assert "by the X-ray (there are no formulas for the model type phi3)" in out


@pytest.mark.parametrize(
    "options, message",
    [
        ("nonsense", "There is no model 'nonsense'"),
        ("llama-2-7b --batch 0", "batch must be a whole number"),
        ("llama-2-7b --seq -4", "seq must be a whole number"),
        ("llama-2-7b --gpu abacus", "There is no GPU 'abacus'"),
        ("llama-2-7b --targets head", "no target head"),
        ("llama-2-7b --optimizer magic", "no optimizer 'magic'"),
        ("llama-2-7b --dropout 2", "dropout must be"),
    ],
)
def test_bad_input_is_one_sentence(budget, options, message):
    status, out, err = budget(options)
    assert status == 1
    assert out == ""
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "config, message",
    [
        ("not json", "is not JSON"),
        ("[]", "does not hold a model's config"),
        ({}, "names no model_type"),
        ({"model_type": "nonsense"}, "does not know the model type 'nonsense'"),
        ({"hidden_size": -1}, "hidden_size = -1"),
        ({"num_key_value_heads": 5}, "5 key heads cannot share"),
        ({"num_attention_heads": 3000, "head_dim": None}, "do not divide"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(tmp_path, config, message):
    facts = architectures.find("Llama-3.2-1B").config
    if isinstance(config, dict):
        config = json.dumps(facts | config if config and "model_type" not in config else config)
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(KitError, match=message):
        architectures.find(tmp_path)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(KitError, match=r"no config\.json"):
        architectures.find(tmp_path)


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    import huggingface_hub

    def fail(*_):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(KitError, match=r"owner/name could not be fetched \(OSError\)"):
        architectures.find("owner/name")


def test_a_config_object_and_a_model_that_sees_are_understood():
    from transformers import Gemma3Config, LlamaConfig

    assert architectures.find(LlamaConfig()).layers == 32
    seeing = architectures.find(Gemma3Config())
    assert seeing.gemma and seeing.covered and seeing.tied


@pytest.mark.parametrize(
    "outer, inner",
    [
        ({}, {}),
        ({"tie_word_embeddings": False}, {}),
        ({"tie_word_embeddings": True}, {}),
        ({}, {"tie_word_embeddings": True}),
        ({"tie_word_embeddings": False}, {"tie_word_embeddings": True}),
    ],
)
@pytest.mark.parametrize("kind", ["gemma3", "llava", "mistral3", "qwen2_vl"])
def test_the_head_of_a_model_that_sees_is_counted_as_transformers_builds_it(kind, outer, inner):
    """Tied or not: each type has its own default, and some look into their text_config."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = {
        "model_type": {"gemma3": "gemma3_text", "mistral3": "mistral", "llava": "llama"}.get(
            kind, "qwen2_vl_text"
        ),
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "pad_token_id": 0,
    }
    written = {"model_type": kind, "text_config": text | inner} | outer
    architecture = architectures.from_config(written, kind)
    facts = {key: value for key, value in written.items() if key != "model_type"}
    config = AutoConfig.for_model(kind, **json.loads(json.dumps(facts)))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    model.tie_weights()
    ties = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert architecture.tied == ties

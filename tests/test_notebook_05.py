"""What comparing outputs cannot see in notebook 05: that its text says what its cells print, that
its bytes are those of the formulas, and that a really loaded model has the printed line."""

import json
import re

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

from qlora_kit import memory, models
from qlora_kit.data import stored, tickets
from qlora_kit.memory import architectures, meter
from qlora_kit.paths import DATA, ROOT
from qlora_kit.training import quirks

BOOK = json.loads(
    (ROOT / "notebooks" / "05_attach_to_a_real_model.ipynb").read_text(encoding="utf-8")
)
CELLS = {cell["id"]: cell for cell in BOOK["cells"]}
TEXT = "\n".join("".join(c["source"]) for c in BOOK["cells"] if c["cell_type"] == "markdown")
SMOLLM2 = architectures.find("SmolLM2-135M-Instruct")
QLORA = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
)


def printed(name):
    """The lines that a cell printed, as stored."""
    streams = [out["text"] for out in CELLS[name]["outputs"] if out["output_type"] == "stream"]
    return "".join("".join(text) for text in streams).splitlines()


def integers(text):
    return [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", text)]


def table():
    """The table of options: (weights, scales, not quantised, error, loss, seconds) by name."""
    rows = {}
    for line in printed("table")[1:]:
        numbers = line[24:].split()
        rows[line[:24].strip()] = [float(number.replace(",", "")) for number in numbers]
    return rows


def lines(name):
    """'name   before   after' lines as pairs by name."""
    rows = (re.split(r"  +", line.strip()) for line in printed(name)[1:])
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize(
    "name", [*("option-facts", "rule", "back", "stop-facts", "gemma-loss-facts", "gemma-facts")]
)
def test_every_cell_that_states_facts_says_yes(name):
    answers = re.findall(r": (True|False)", "\n".join(printed(name)))
    assert answers and set(answers) == {"True"}


def test_the_bytes_of_each_option_are_those_of_the_formulas():
    shapes = [shape for shape in SMOLLM2.linears().values() for _ in range(SMOLLM2.layers)]
    weights = sum(rows * columns for rows, columns in shapes)
    scales = sum(-(-rows * columns // 64) for rows, columns in shapes)
    second = sum(-(-rows * columns // 64 // 256) for rows, columns in shapes)
    single = 4 * scales + 64 * len(shapes)  # float32, and a code book of 16
    double = scales + 4 * second + (64 + 1024 + 4) * len(shapes)  # a book of 256, and an offset
    other = 4 * SMOLLM2.other_parameters() + 256  # with two buffers of the positions
    layer = [rows * columns for rows, columns in SMOLLM2.linears().values()]
    rows = {name: [int(number) for number in row[:3]] for name, row in table().items()}
    assert rows.pop("not quantised") == [0, 0, 4 * weights + other]
    assert rows.pop("load_in_8bit") == [weights, 4 * sum(out for out, _ in shapes), other]
    for name in ("+ use_double_quant", "+ nf4, double_quant"):
        assert rows.pop(name) == [weights // 2, double, other]
    assert rows.pop("+ skip_modules") == [
        (weights - sum(layer)) // 2,
        single - sum(4 * n // 64 + 64 for n in layer),
        other + 4 * sum(layer),
    ]
    assert len(rows) == 4
    assert all(row == [weights // 2, single, other] for row in rows.values())
    saved = re.search(r"saves ([\d.]+) bits", "\n".join(printed("option-facts")))[1]
    assert float(saved) == pytest.approx(8 * (single - double) / weights, abs=5e-4)


def test_the_text_says_what_the_table_of_options_says():
    error = {name: row[3] for name, row in table().items()}
    loss = {name: row[4] for name, row in table().items()}
    four = "load_in_4bit"
    assert 1 - error["+ quant_type nf4"] / error[four] == pytest.approx(0.25, abs=0.02)
    assert "a quarter less error" in TEXT
    ratio = sum(table()["load_in_8bit"][:2]) / sum(table()[four][:2])
    assert 1.7 < ratio < 2 and "almost twice the bytes" in TEXT
    assert abs(loss["+ compute_dtype bfloat16"] - loss[four]) < 0.01
    assert loss["+ skip_modules"] >= loss[four] - 0.005
    assert error["+ skip_modules"] < error[four]
    share = int(re.search(r"now (\d+)%", printed("parts-picture")[-1])[1])
    assert 48 <= share <= 52 and "the embedding is now half of all bytes" in TEXT


def test_nf4_has_the_smaller_error_on_normal_numbers():
    """Which the text says of more than the weights that were measured."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    nf4, fp4 = (
        (dequantize_4bit(*quantize_4bit(weight, quant_type=kind)) - weight).norm()
        for kind in ("nf4", "fp4")
    )
    assert nf4 < 0.8 * fp4


def test_the_defaults_are_those_of_the_libraries():
    import bitsandbytes

    assert [line.split()[1] for line in printed("defaults")] == ["fp4", "False", "float32", "uint8"]
    assert bitsandbytes.nn.Linear4bit(64, 64).weight.quant_type == "fp4"


def test_preparing_changes_what_the_text_lists():
    before_and_after = lines("prepare")
    changed = [name for name, (before, after) in before_and_after.items() if before != after]
    assert len(before_and_after) == 9 and "of the following nine lines" in TEXT
    assert changed == [
        *("embedding", "norms", "vectors between layers", "bytes not quantised"),
        *("checkpointing", "hook on the embedding"),
    ]
    assert before_and_after["embedding"] == ["bfloat16, trainable", "float32, frozen"]
    assert before_and_after["tensors of an adapter"] == ["0", "0"]
    small, large = (integers(number)[0] for number in before_and_after["bytes not quantised"])
    # two buffers of 128 bytes are float32 from the start
    assert large - 256 == 2 * (small - 256) == 4 * SMOLLM2.other_parameters()
    prepared_and_peft = lines("attach")
    differ = [name for name, (left, right) in prepared_and_peft.items() if left != right]
    assert differ == [
        *("embedding", "norms", "vectors between layers", "bytes not quantised"),
        "tensors of an adapter",
    ]
    assert prepared_and_peft["embedding"][1] == "bfloat16, frozen"
    assert [line.split()[-1] for line in printed("hook")] == ["True", "False"]


@pytest.fixture
def tiny(tmp_path, smollm2):
    """A folder with a 16-bit Llama of one layer, for loading in 4 bits with the real tokenizer."""
    _, tokenizer = smollm2
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    return tmp_path


def load(folder, dtype=torch.bfloat16, config=QLORA):
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map="cpu", quantization_config=config
    )
    models.guard_cpu_repacking(model)
    return model


def test_the_trainer_freezes_and_hooks_without_preparing(tiny, smollm2, tmp_path):
    rows = tickets.load(DATA / "tickets_dev.jsonl")[:8]
    trainer = SFTTrainer(
        model=load(tiny),
        args=SFTConfig(
            output_dir=str(tmp_path / "run"),
            bf16=False,
            use_cpu=True,
            report_to="none",
            **quirks.checkpointing(True),
        ),
        train_dataset=Dataset.from_list(tickets.examples(rows, reply_every=4)),
        processing_class=smollm2[1],
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    embedding = trainer.model.get_input_embeddings()
    assert embedding.weight.dtype == torch.bfloat16 and not embedding.weight.requires_grad
    assert embedding(torch.tensor([[1]])).requires_grad
    trained = [n for n, p in trainer.model.named_parameters() if p.requires_grad]
    assert len(trained) == 14 and all("lora_" in name for name in trained)


@pytest.mark.parametrize("stream", [torch.bfloat16, torch.float32])
def test_loading_in_float32_gives_the_dtypes_that_preparing_gives(tiny, stream):
    prepared = prepare_model_for_kbit_training(load(tiny, stream))
    plain = load(tiny, torch.float32)
    dtypes = [{n: p.dtype for n, p in model.named_parameters()} for model in (prepared, plain)]
    assert dtypes[0] == dtypes[1]
    assert meter.static_bytes(prepared) == meter.static_bytes(plain)


def test_the_counts_are_those_of_the_architecture():
    shapes = SMOLLM2.linears()
    attention, mlp = [n for n in shapes if n[0] in "qkvo"], ["gate_proj", "up_proj", "down_proj"]
    rows = {line[:17].strip(): integers(line[17:]) for line in printed("target-counts")[1:]}
    layers = SMOLLM2.layers
    assert rows == {
        "q_proj, v_proj": [2 * layers, SMOLLM2.adapter_parameters(16, ["q_proj", "v_proj"])],
        "attention": [4 * layers, SMOLLM2.adapter_parameters(16, attention)],
        "MLP": [3 * layers, SMOLLM2.adapter_parameters(16, mlp)],
        "last ten layers": [70, SMOLLM2.adapter_parameters(16, shapes) // 3],
        "all-linear": [7 * layers, SMOLLM2.adapter_parameters(16, shapes)],
    }
    *tables, whole = (integers(line)[-1] for line in printed("left-out"))
    assert tables == 2 * [16 * (SMOLLM2.vocabulary + SMOLLM2.hidden)]
    assert whole == SMOLLM2.adapter_parameters(16, shapes) // layers < tables[0]


GEMMA_LINE = "trainable params: 13,045,760 || all params: 1,012,931,712 || trainable%: 1.2879"


def test_the_lines_are_those_of_the_articles():
    assert printed("gemma-line")[-1] == GEMMA_LINE
    [line] = printed("llama-line")
    assert line == "trainable params: 39,976,960 || all params: 6,778,392,576 || trainable%: 0.5898"
    assert integers(printed("gemma-untied")[-1])[:2] == [1_314_921_600, 301_989_888]


@pytest.mark.full
def test_a_full_size_gemma_3_1b_in_4_bits_has_the_line_of_the_notebook(gemma_1b, capsys):
    """Random weights in the real shape, saved and loaded as anybody would: 4 GB of memory."""
    model = load(gemma_1b)
    assert sum(type(m).__name__ == "Linear4bit" for m in model.modules()) == 26 * 7
    lora = LoraConfig(
        r=16,
        lora_alpha=16,
        lora_dropout=0.05,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, lora)
    capsys.readouterr()
    model.print_trainable_parameters()
    assert capsys.readouterr().out.strip() == printed("gemma-line")[-1] == GEMMA_LINE
    # Exercise 2 has the embedding in 16 bits, although the model is loaded in 4.
    assert model.get_input_embeddings().weight.nbytes == 2 * 262_144 * 1_152


def test_the_adapter_s_file_is_four_bytes_a_number():
    trained, numbers = integers(printed("disk")[0])[0], integers(printed("disk")[0])[-1]
    assert trained == SMOLLM2.adapter_parameters(16, SMOLLM2.linears())
    file, names = integers(printed("disk")[1])
    assert numbers == 4 * trained == file - names and names < 300 * 420
    assert printed("save")[-1] == "adapter_model.safetensors"
    sizes = [integers(line)[-3::2] for line in printed("disk")[3:]]
    assert sizes == [[52, 2000], [160, 13477]]  # 16 bits x 999,885,952 and 6,738,415,616


def test_only_a_and_b_get_a_gradient():
    rows = [line.split() for line in printed("who")[1:5]]
    assert {row[0]: row[2] for row in rows} == {"base": "False", "lora_A": "True", "lora_B": "True"}
    packed, whole = integers(rows[1][3])[0], integers(printed("who")[6])
    assert 2 * packed == SMOLLM2.linear_parameters()
    counted = integers(printed("who")[5])[0]
    assert whole[1] - counted == packed, "PEFT's line counts both weights of a byte"


@pytest.mark.full
def test_a_base_gemma_has_no_template_and_another_stop():
    """What the text says of base models, on the real Gemma 3 270M (a base)."""
    _, folder = models.get_weights(models.PROFILES["gemma-3-270m"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template is None
    assert tokenizer.eos_token == "<eos>"
    config = AutoConfig.from_pretrained(folder)
    turns = tokenizer.convert_tokens_to_ids(["<start_of_turn>", "<end_of_turn>"])
    assert tokenizer.unk_token_id not in turns and max(turns) < config.vocab_size
    assert tokenizer.convert_tokens_to_ids("<end_of_turn>") != config.eos_token_id


def test_eight_bit_weights_are_counted_with_their_scales(tiny):
    model = load(tiny, config=BitsAndBytesConfig(load_in_8bit=True))
    linears = [m for m in model.modules() if type(m).__name__ == "Linear8bitLt"]
    held = meter.static_bytes(model)
    assert held["quantised weights"] == sum(m.in_features * m.out_features for m in linears)
    assert held["quantisation constants"] == 4 * sum(m.out_features for m in linears)


STORED = json.loads((ROOT / "data" / "gemma_float16.json").read_text(encoding="utf-8"))


def cells(*names, **given):
    """The names that these cells bind, with the `given` ones bound before."""
    for name in names:
        exec("".join(CELLS[name]["source"]), given)
    return given


def section(**given):
    """What the section on float16 binds, without loading anything before it."""
    from matplotlib import pyplot as plt

    plt.switch_backend("agg")
    dev = tickets.load(DATA / "tickets_dev.jsonl")
    names = [c["id"] for c in BOOK["cells"] if c["cell_type"] == "code"]
    names = names[names.index("gemma-ready") :]
    bound = cells("imports", *names, dev=dev, **given)
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


def test_the_text_says_what_the_gradients_do():
    bins = STORED["backward"]["bins"]
    rows = {(row["tokens"], row["scale"]): row for row in STORED["backward"]["rows"]}
    zero = [sum(bins[: 35 + power]) for power in (13, 3, 17, 7)]  # 2**-25 times the divisor
    printed_zero = [
        float(share) for share in re.findall(r"([\d.]+)%", "\n".join(printed("gemma-underflow")))
    ]
    assert printed_zero == pytest.approx([100 * share for share in zero], abs=0.06)
    assert zero[0] == pytest.approx(0.2, abs=0.04) and "a fifth of the numbers" in TEXT
    assert zero[2] > 0.5 and "more than half in the huge one" in TEXT
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
    assert rows[1][1:] == ["0.500", "0.999"] and "half a step, and a whole one" in TEXT


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

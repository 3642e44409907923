"""What comparing outputs cannot see in notebook 05: that its text is true of what its cells print,
that its bytes are those of the formulas, and that a really loaded model has the printed line."""

import json
import math
import re

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

from qlora_kit import models
from qlora_kit.data import tickets
from qlora_kit.memory import architectures, meter
from qlora_kit.paths import DATA, ROOT
from qlora_kit.training import quirks

BOOK = json.loads(
    (ROOT / "notebooks" / "05_attach_to_a_real_model.ipynb").read_text(encoding="utf-8")
)
CELLS = {cell["id"]: cell for cell in BOOK["cells"]}
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
    lines = [line for line in printed("table")[1:] if not line.startswith("on this CPU")]
    for line in lines:
        numbers = line[24:].split()
        rows[line[:24].strip()] = [float(number.replace(",", "")) for number in numbers]
    return rows


def lines(name):
    """'name   before   after' lines as pairs by name."""
    rows = (re.split(r"  +", line.strip()) for line in printed(name)[1:])
    return {row[0]: row[1:] for row in rows}


def test_the_stop_token_of_the_base_lets_the_answer_run_on():
    its_own, of_the_base = printed("stop-facts")
    assert its_own.endswith("<|im_end|>")
    assert "says <|im_end|> at the same place" in of_the_base and "limit of 40" in of_the_base


def test_a_saved_adapter_gives_the_same_logits():
    same, moved = printed("back")
    assert same.endswith(": 0") and "more than 0.1" in moved


def test_the_rule_of_the_count_is_that_of_peft():
    rows = [integers(line[18:]) for line in printed("rule")[1:]]
    assert len(rows) == 7
    assert all(rule == counted == 16 * (a + b) for a, b, rule, counted in rows)


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


def test_the_table_of_options_bears_out_what_the_text_says_of_it():
    error = {name: row[3] for name, row in table().items()}
    loss = {name: row[4] for name, row in table().items()}
    four = "load_in_4bit"
    assert 1 - error["+ quant_type nf4"] / error[four] == pytest.approx(0.25, abs=0.02)
    ratio = sum(table()["load_in_8bit"][:2]) / sum(table()[four][:2])
    assert 1.7 < ratio < 2
    assert error["load_in_8bit"] < error["+ quant_type nf4"] / 10
    assert error["+ nf4, double_quant"] < 1.01 * error["+ quant_type nf4"]
    assert abs(loss["+ compute_dtype bfloat16"] - loss[four]) < 0.01
    assert loss["+ skip_modules"] >= loss[four] - 0.005
    assert error["+ skip_modules"] < error[four]
    ranked = "not quantised", "load_in_8bit", "+ quant_type nf4", four
    assert sorted(ranked, key=loss.get) == list(ranked)
    rise = math.exp(loss["+ nf4, double_quant"] - loss["not quantised"]) - 1
    assert 0.175 < rise < 0.225, "about a fifth"
    share = int(re.search(r"now (\d+)%", printed("became")[-1])[1])
    assert 48 <= share <= 52


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
        train_dataset=Dataset.from_list(tickets.examples(rows, 5)),
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
    outside = 16 * (SMOLLM2.vocabulary + SMOLLM2.hidden)  # an adapter on the head or the embedding
    assert outside > SMOLLM2.adapter_parameters(16, shapes) // layers


GEMMA_LINE = "trainable params: 13,045,760 || all params: 1,012,931,712 || trainable%: 1.2879"


def test_the_lines_are_those_that_are_known():
    assert printed("gemma-line") == [
        GEMMA_LINE,
        "trainable params: 39,976,960 || all params: 6,778,392,576 || trainable%: 0.5898",
    ]


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
    assert capsys.readouterr().out.strip() == printed("gemma-line")[0] == GEMMA_LINE
    # Exercise 2 has the embedding in 16 bits, although the model is loaded in 4.
    assert model.get_input_embeddings().weight.nbytes == 2 * 262_144 * 1_152


def test_the_adapter_s_file_is_four_bytes_a_number():
    files, numbers, file, _, *others = printed("save")
    assert files.split() == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    trained, _, size = integers(numbers)
    assert trained == SMOLLM2.adapter_parameters(16, SMOLLM2.linears())
    on_disk, names = integers(file)
    assert size == 4 * trained == on_disk - names and names < 300 * 420
    sizes = [integers(line)[-3::2] for line in others]
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

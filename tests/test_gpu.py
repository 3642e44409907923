"""What only a GPU can show: that its kernels give what the CPU's give, and that it counts bytes as
the kit does. Random models and a tokenizer of whole words: nothing is downloaded.

Each body that can run without a GPU runs on the CPU as well, so that it does not rot.
"""

import json
import os
import subprocess
import sys
import types

import bitsandbytes
import pytest
import tiny_run
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from qlora_kit import doctor, models, nf4, scoring
from qlora_kit.data import tickets
from qlora_kit.memory.meter import Meter
from qlora_kit.paths import DATA, ROOT
from qlora_kit.training import quirks

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
ROWS = tickets.load(DATA / "tickets_dev.jsonl")[:40]
LABELS = [f"{c}, {p}" for c in tickets.CATEGORIES for p in tickets.PRIORITIES]


@pytest.fixture(params=["cpu", CUDA])
def device(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer():
    """Of the words of the tickets and of their labels."""
    texts = [text for row in ROWS for text in (row.ticket, row.label, row.reply)]
    return tiny_run.make_tokenizer([types.SimpleNamespace(ticket=text) for text in texts])


@pytest.fixture(scope="module")
def save_model(tokenizer, tmp_path_factory):
    """Saves a random Llama with the tokenizer; returns the folder."""

    def save(**shape):
        torch.manual_seed(0)
        config = LlamaConfig(tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, **shape)
        folder = tmp_path_factory.mktemp("model")
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="module")
def folder(save_model, tokenizer):
    """A model of two layers."""
    return save_model(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
    )


def load(folder, device, tokenizer, dtype=torch.float32):
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        device_map=device,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
    )
    models.guard_cpu_repacking(model)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def lora():
    return LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nf4_has_the_bits_that_it_has_on_a_cpu(device, dtype):
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0)).to(dtype)
    for block_size in (64, 256, 4096):
        here, there = nf4.quantize(weight, block_size), nf4.quantize(weight.to(device), block_size)
        packed, state = quantize_4bit(weight.to(device), blocksize=block_size, quant_type="nf4")
        for codes, scales in ((there.packed, there.scales), (packed, state.absmax)):
            assert torch.equal(codes.flatten().cpu(), here.packed), block_size
            assert torch.equal(scales.cpu(), here.scales), block_size
        for back in (there.dequantize(), dequantize_4bit(packed, state)):
            torch.testing.assert_close(back.cpu(), here.dequantize(), rtol=1e-6, atol=0)


@pytest.mark.gpu
def test_the_meter_counts_what_torch_counts(folder, tokenizer):
    model = load(folder, "cuda", tokenizer)
    model = get_peft_model(model, lora()).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids = torch.ones(4, 256, dtype=torch.long, device="cuda")

    def step():
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()

    step()  # makes the optimizer's states, and cuBLAS takes its workspace
    with Meter(model, optimizer) as meter:
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    assert meter.peak == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.01)
    assert meter.peaks["load"] <= before < meter.peak


def test_scoring_gives_what_it_gives_on_a_cpu(folder, tokenizer, device):
    """In float32, where two answers that are about equally likely are rare."""
    found = []
    for place in ("cpu", device):
        model = load(folder, place, tokenizer)
        for parameter in model.parameters():  # surer of its words than a random model
            if parameter.is_floating_point():
                parameter.data.mul_(3)
        prompts = [tickets.prompt(row.ticket) for row in ROWS]
        answers = scoring.generate_answers(model, tokenizer, prompts, 6, batch=16)
        nats = scoring.answer_nll(model, tokenizer, [row.example() for row in ROWS])
        labels = scoring.most_likely_labels(model, tokenizer, prompts, LABELS)
        found.append((answers, nats, labels))
    (answers, nats, labels), (answers_there, nats_there, labels_there) = found
    assert len(set(answers)) > 1 and len(set(labels)) > 1, "all the same: nothing is compared"
    assert answers_there == answers
    assert labels_there == labels
    assert [n for n, _ in nats_there] == pytest.approx([n for n, _ in nats], rel=1e-4)


def test_five_steps_of_the_trainer_lower_the_loss(folder, tokenizer, device, tmp_path):
    trainer = SFTTrainer(
        model=load(folder, device, tokenizer),
        args=SFTConfig(
            output_dir=str(tmp_path),
            max_steps=5,
            per_device_train_batch_size=8,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            bf16=False,
            use_cpu=device == "cpu",
            report_to="none",
            **quirks.checkpointing(True),
        ),
        train_dataset=Dataset.from_list(tickets.examples(ROWS[:8], 5)),
        processing_class=tokenizer,
        peft_config=lora(),
    )
    quirks.adapters_to_float32(trainer.model)
    digest = models.base_digest(trainer.model)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 5 and losses[-1] < losses[0] - 0.05, losses
    assert models.base_digest(trainer.model) == digest
    assert next(trainer.model.parameters()).device.type == device


# Executes cells of notebook 06 by their ids on a model that is already there. On a CPU the dtypes
# are fixed; on a GPU they are those that the kit picks.
CELLS = """
import dataclasses, json, pathlib, sys
import torch
from transformers import AutoTokenizer
from qlora_kit import models, profiles
from qlora_kit.data import tickets

device, folder, run, book = sys.argv[1:]
book = json.loads(pathlib.Path(book).read_text(encoding="utf-8"))
cells = {cell["id"]: "".join(cell["source"]) for cell in book["cells"]}
optimizer = {"cpu": "adamw_torch", "cuda": "paged_adamw_8bit"}[device]
recipe = dataclasses.replace(
    profiles.LARGE, rows=100, scored=4, optimizer=optimizer, learning_rate=5e-3
)
profile = dataclasses.replace(
    profiles.SMOLLM2,
    recipe=recipe,
    stop_tokens=("<eos>",),
    pad_token="<pad>",
    chat_template=AutoTokenizer.from_pretrained(folder).chat_template,
)
models.pick_profile = lambda: profile
models.get_weights = lambda profile: (profile, pathlib.Path(folder))
if device == "cpu":
    models.pick_dtypes = lambda begun=None: models.Dtypes("cpu", torch.float32, torch.float32)
# On a CPU the loss has several copies of the scores where a GPU's kernel has one (TRL 1.16): few
# tokens are learnt here, so that they do not count.
tickets.examples = lambda rows, *_: [row.example() for row in rows]
names = {"sys": sys}


def execute(*ids):
    for name in ids:
        exec(cells[name], names)


execute("settings")
names["run_dir"] = run
execute("imports", "profile", "data", "load", "quantised", "examples", "lora", "config", "run")
execute("trainer", "label-mask", "trainer-checked", "train", "facts", "budget")
execute("save", "small")
print(json.dumps({
    "steps": names["trainer"].state.global_step,
    "losses": names["losses"],
    "devices": sorted({p.device.type for p in names["trainer"].model.parameters()}),
    "predicted": names["predicted"],
    "measured": names["measured"],
    "phases": list(names["peaks"]),
}))
"""


@pytest.fixture(params=["cpu", CUDA], scope="module")
def notebook_06(request, save_model, tokenizer, tmp_path_factory):
    """What the cells printed, and the figures at their end, by device. On a GPU the model has the
    shape of SmolLM2-135M, since what is fixed, such as cuBLAS' workspace, would hide the rest."""
    shape = {
        "cpu": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 2},
        "cuda": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
    }[request.param]
    folder = save_model(
        vocab_size=49152,  # that of SmolLM2: more words than a tile of the loss has
        num_attention_heads=shape["hidden_size"] // 64,
        **shape,
    )
    run = tmp_path_factory.mktemp("run")
    book = ROOT / "notebooks" / "06_train_gemma.ipynb"
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if request.param == "cpu" else {}
    done = subprocess.run(
        [sys.executable, "-c", CELLS, request.param, folder, run, book],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | hidden,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(done.stdout.splitlines()[-1]), request.param


def test_notebook_06_trains_on_it(notebook_06):
    printed, seen, device = notebook_06
    for fact in (
        "the trainer kept every example: True",
        "the stop token is learnt: True",
        "every loss is finite: True",
        "every byte of the base is as before: True",
        "all that was trained is A and B: True",
        "less than a tenth of the base: True",
    ):
        assert fact in printed, fact
    assert seen["devices"] == [device]
    assert seen["steps"] > 5 and seen["losses"][-1] < seen["losses"][0]


def test_a_real_step_takes_what_the_budget_says(notebook_06):
    _, seen, _ = notebook_06
    assert seen["phases"] == ["load", "forward", "loss", "backward", "step"]
    assert seen["predicted"] == pytest.approx(seen["measured"], rel=0.1)


@pytest.mark.gpu
def test_the_dtypes_are_those_of_its_compute_capability():
    dtypes = models.pick_dtypes()
    native = torch.cuda.get_device_capability() >= (8, 0)
    wanted = (torch.bfloat16, torch.bfloat16) if native else (torch.float32, torch.float16)
    assert (dtypes.device, dtypes.model, dtypes.compute) == ("cuda", *wanted)
    assert dtypes.loss_scale == (1 if native else 1024)
    layer = bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=dtypes.compute, quant_type="nf4")
    assert layer.to("cuda")(torch.ones(2, 64, device="cuda", dtype=dtypes.model)).isfinite().all()


@pytest.mark.gpu
def test_the_doctor_finds_no_error():
    found = doctor.machine()
    assert not [finding for finding in found if finding.level == "error"]
    assert any(finding.title.startswith("GPU: ") for finding in found)

"""Findings about the machine. There is no GPU here: tests of one fake torch.cuda and say so."""

import http.server
import importlib
import shutil
import sys
import threading
from collections import namedtuple

import huggingface_hub
import pytest
import torch

from qlora_kit import __main__, bootstrap, course, doctor, fetch, memory, models
from qlora_kit.cli import commands
from qlora_kit.doctor import hardware, weights
from qlora_kit.hub import remember
from qlora_kit.paths import ROOT

machine = importlib.import_module("qlora_kit.doctor.machine")  # its function has its name
GPU = models.PROFILES["gemma-3-1b"]
CPU = models.PROFILES["smollm2-135m"]


def only(findings, level, *words):
    [found] = findings
    assert found.level == level, found
    assert level == "ok" or (found.why and found.fix)
    for word in words:
        assert word in found.title, found


@pytest.fixture
def faked_gpu(monkeypatch):
    """Pretends that there is a GPU: its compute capability, its memory, the time of a product."""

    def pretend(
        capability=(7, 5), free=14.0, float32=1.0, float16=0.2, bfloat16=3.0, architectures=()
    ):
        monkeypatch.delenv("QLORA_KIT_PROFILE", raising=False)
        seconds = {torch.float32: float32, torch.float16: float16, torch.bfloat16: bfloat16}
        gib = 2**30
        properties = namedtuple("Properties", "total_memory")(int(14.56 * gib))
        for name, value in {
            "is_available": True,
            "mem_get_info": (int(free * gib), properties.total_memory),
            "get_device_capability": capability,
            "get_device_name": "Tesla T4",
            "get_arch_list": list(architectures),
        }.items():
            monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)
        monkeypatch.setattr(
            models, "seconds_of_a_product", lambda dtype, device="cpu": seconds[dtype]
        )

    return pretend


@pytest.fixture
def fetched(monkeypatch):
    """The weights are here, there is memory, and nobody is logged in."""
    monkeypatch.setattr(models, "cached", lambda profile: "a folder")
    monkeypatch.setattr(memory, "free_bytes", lambda: 8e9)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)


def test_all_is_well_on_the_default_path(fetched):
    found = doctor.machine()
    assert {finding.level for finding in found} == {"ok"}, doctor.report("machine", found)
    subjects = "Python", "packages", "GPU", "number formats", "memory", "disk", "model"
    for finding, subject in zip(found, subjects, strict=True):
        assert subject in finding.title


def test_the_command_ends_with_1_on_an_error_alone(monkeypatch, capsys):
    for level, code in (("ok", 0), ("warning", 0), ("error", 1)):
        found = [doctor.Finding(level, "seen", "why", "fix"), doctor.Finding("ok", "fine")]
        monkeypatch.setattr(doctor, "machine", lambda found=found: found)
        assert commands.doctor(None) == code
        assert f"{level.upper():<9}seen" in capsys.readouterr().out


def test_the_command_is_in_the_help_with_an_example():
    assert "python3 -m qlora_kit doctor" in __main__.parser().format_help()
    assert bootstrap.EXTRAS["doctor"] == []


# Packages


def install(folder, name, version):
    """A package of one file, as pip leaves it."""
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "__init__.py").write_text(f"__version__ = {version!r}\n")
    for old in folder.glob(f"{name}-*.dist-info"):
        shutil.rmtree(old)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_a_package_out_of_range_stops_and_nothing_is_imported(tmp_path, monkeypatch):
    install(tmp_path, "trl", "0.9.1")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trl", raising=False)  # else it would be stale as well
    monkeypatch.setattr(models, "pick_dtypes", None)  # would raise
    [_, *found] = doctor.machine()
    only(found, "error", "packages are missing", "trl>=1.16,<2")
    assert 'pip install "trl>=1.16,<2"' in found[0].fix


def test_an_old_torchao_is_seen_and_really_hurts(tmp_path, monkeypatch, python):
    install(tmp_path, "torchao", "0.16.0")
    monkeypatch.syspath_prepend(tmp_path)
    assert not [*machine._torchao()]
    install(tmp_path, "torchao", "0.10.0")
    only(machine._torchao(), "warning", "torchao 0.10.0")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from peft import LoraConfig, get_peft_model\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "tiny = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,"
        " num_attention_heads=2)\n"
        "get_peft_model(LlamaForCausalLM(tiny), LoraConfig(target_modules=['q_proj']))\n"
    )
    assert "incompatible version of torchao" in python(code).stderr


def test_a_package_that_was_imported_before_its_update_is_seen(tmp_path, monkeypatch):
    install(tmp_path, "gguf", "0.19.0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "gguf", None)  # so that what was there comes back
    del sys.modules["gguf"]
    __import__("gguf")
    assert not [*machine._stale()]
    install(tmp_path, "gguf", "0.20.0")
    only(machine._stale(), "error", "gguf 0.19.0 (installed: 0.20.0)")


# The device


def test_a_t4_is_well_with_torch_cuda_faked(faked_gpu, fetched):
    faked_gpu()
    found = doctor.machine()
    assert {finding.level for finding in found} == {"ok"}, doctor.report("machine", found)
    text = doctor.report("machine", found)
    assert "Tesla T4, 14.6 GiB" in text
    assert "float32 between layers, float16 for products" in text
    assert "14.0 GiB free, and a step with gemma-3-1b takes" in text


@pytest.mark.parametrize(
    "capability, architectures, fix",
    [
        ((6, 1), ["sm_75", "sm_90", "sm_120"], "https://download.pytorch.org/whl/cu126"),
        ((12, 0), ["sm_50", "sm_75", "sm_90"], "install the newest torch"),
    ],
)
def test_a_gpu_that_torch_has_no_code_for_is_said_with_torch_cuda_faked(
    faked_gpu, fetched, monkeypatch, capability, architectures, fix
):
    faked_gpu(capability, architectures=architectures)
    monkeypatch.setattr(torch.Tensor, "cuda", None)  # nothing may be put there
    found = doctor.machine()
    assert "smollm2-135m" in found[-1].title, "the profile of a CPU"
    [said] = [finding for finding in found if finding.level != "ok"]
    words = "Tesla T4", "compute capability {}.{}".format(*capability), "no kernels for it"
    only([said], "warning", *words)
    assert "Everything runs on the CPU" in said.why and architectures[0] in said.why
    assert fix in said.fix


def test_a_gpu_with_native_bfloat16_is_well_with_torch_cuda_faked(faked_gpu, fetched):
    faked_gpu((9, 0), bfloat16=0.1)
    found = doctor.machine()
    assert {finding.level for finding in found} == {"ok"}
    assert "bfloat16 between layers, bfloat16 for products" in doctor.report("machine", found)


@pytest.mark.parametrize(
    "stream, compute, level, words",
    [
        ("bfloat16", "bfloat16", "warning", "only emulates bfloat16: 3.0 times"),
        ("float32", "bfloat16", "warning", "only emulates bfloat16"),
        ("float16", "float16", "error", "float16 between the layers"),
        ("float32", "float32", "warning", "float32 products take 5.0 times as long as float16"),
        ("float32", "float16", "ok", "float16 for products"),
    ],
)
def test_other_dtypes_on_a_t4_are_seen_with_torch_cuda_faked(
    faked_gpu, stream, compute, level, words
):
    faked_gpu((7, 5))
    chosen = models.Dtypes("cuda", getattr(torch, stream), getattr(torch, compute))
    only(hardware.formats(chosen), level, words)


@pytest.mark.parametrize("dtype, level", [("bfloat16", "warning"), ("float32", "ok")])
def test_a_slow_dtype_on_a_cpu_is_seen(monkeypatch, dtype, level):
    def seconds(dtype, device):
        return 7.0 if dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(models, "seconds_of_a_product", seconds)
    chosen = models.Dtypes("cpu", getattr(torch, dtype), getattr(torch, dtype))
    only(hardware.formats(chosen), level, "7.0 times" if level == "warning" else "7 times")


def test_a_driver_without_a_gpu_for_torch_is_seen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    only(hardware.device(), "ok", "no GPU, and none is needed")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    only(hardware.device(), "warning", "PyTorch sees no GPU")


# Memory and disk


def test_too_little_gpu_memory_is_seen_with_torch_cuda_faked(faked_gpu):
    faked_gpu(free=0.9)
    only(hardware.free_memory(GPU, models.pick_dtypes()), "warning", "0.9 GiB free")


def test_the_step_is_the_one_that_notebook_06_works_out():
    import ast
    import json

    book = json.loads((ROOT / "notebooks" / "06_train_gemma.ipynb").read_text(encoding="utf-8"))
    [cell] = [cell for cell in book["cells"] if cell["id"] == "budget"]
    [call] = [
        node.value
        for node in ast.walk(ast.parse("".join(cell["source"])))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "setup"
    ]
    for profile in (CPU, GPU):
        for stream, compute in ((torch.float32, torch.float16), (torch.bfloat16,) * 2):
            dtypes = models.Dtypes("cuda", stream, compute)
            names = {"memory": memory, "recipe": profile.recipe, "dtypes": dtypes, "torch": torch}
            assert hardware.setup(profile.recipe, dtypes) == eval(ast.unparse(call), names)


def test_little_memory_names_the_notebooks_that_take_more(monkeypatch):
    large = max(stage.gigabytes for stage in course.STAGES)
    numbers = ", ".join(s.number for s in course.STAGES if s.gigabytes == large)
    monkeypatch.setattr(memory, "free_bytes", lambda: (large - 0.1) * 1e9)
    cpu = models.Dtypes("cpu", torch.float32, torch.float32)
    only(hardware.free_memory(CPU, cpu), "warning", f"less than notebook {numbers} takes")


def whole(folder):
    """A folder of converted weights, as good as empty."""
    folder.mkdir()
    fetch.write_manifest(folder)


def test_a_full_disk_stops(cache, monkeypatch):
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0.7e9))
    only(weights.disk(CPU), "error", "0.7 GB free, and 0.9 GB are needed")
    whole(cache / CPU.name)
    only(weights.disk(CPU), "ok", "0.7 GB free")  # nothing is fetched any more
    only(weights.disk(GPU), "error", "2.3 GB are needed")


# Weights and hub


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers with `status`, and remembers what it was asked."""

    status, asked = 200, []

    def do_GET(self):
        self.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(cache, monkeypatch):
    """A hub on this machine that answers with the given status; an empty cache."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Hub, "asked", [])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)

    def answer(status, token=None):
        monkeypatch.setattr(Hub, "status", status)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)

    yield answer
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "status, token, level, words",
    [
        (200, "secret", "ok", "gives you google/gemma-3-1b-pt"),
        (401, None, "warning", "you are not logged in"),
        (401, "secret", "warning", "your token is not valid"),
        (403, "secret", "warning", "licence not accepted"),
        (500, None, "warning", "status 500"),
    ],
)
def test_what_the_hub_says_about_a_gated_model(hub, status, token, level, words):
    hub(status, token)
    found = [*weights.hub(GPU)]
    only(found, level, words)
    assert Hub.asked == [
        ("/api/models/google/gemma-3-1b-pt/auth-check", token and f"Bearer {token}")
    ]
    assert token is None or token not in doctor.report("hub", found)
    if status == 403:
        assert "accept it at https://huggingface.co/google/gemma-3-1b-pt" in found[0].fix


def test_a_hub_out_of_reach_is_said_with_what_takes_its_place(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    found = [*weights.hub(GPU)]
    only(found, "warning", "cannot be reached")
    assert "gemma-3-270m" in found[0].why


def test_a_hub_that_is_switched_off_is_not_asked(hub, monkeypatch):
    hub(200)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    only(weights.hub(GPU), "warning", "cannot be reached")
    assert Hub.asked == []


@pytest.mark.parametrize("status, token", [(500, None), (403, "secret"), (200, "secret")])
def test_a_packaged_model_needs_no_hub(hub, status, token):
    hub(status, token)
    assert not [*weights.hub(CPU)]
    assert bool(Hub.asked) == bool(token)


def test_a_token_that_is_not_valid_is_said_even_where_none_is_needed(hub):
    hub(401, "secret")
    only(weights.hub(CPU), "warning", "your token is not valid")


def test_a_model_that_is_not_here_yet_is_said(cache):
    only(weights.cached(CPU), "warning", "not on this machine yet")
    assert not [*weights.cached(GPU)]  # the hub is asked about it
    whole(cache / CPU.name)
    only(weights.cached(CPU), "ok", "no network is needed")
    short = models.PROFILES["smollm2-135m-short"]
    only(weights.cached(short), "ok", "no network is needed")


def test_a_snapshot_of_the_hub_is_here(cache):
    assert not models.cached(GPU)
    folder = cache / "snapshot"
    folder.mkdir()
    remember(GPU.hub[1], folder)
    assert models.cached(GPU) == folder

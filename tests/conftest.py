import sys

import deprecations
import nbformat
import pytest
import torch

from qlora_kit import fetch, models
from qlora_kit.paths import ROOT


def pytest_configure(config):
    deprecations.are_errors(config)


@pytest.fixture(autouse=True)
def only_tests_for_a_gpu_see_one(request):
    """What the others expect are a CPU's figures; a test of a GPU's kind pretends that it has one.

    The variable is for processes that a test starts.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not request.node.get_closest_marker("gpu"):
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="session")
def smollm2():
    """The default model in 4 bit, and its tokenizer, in float32 on every processor: in bfloat16 a
    batch and a single row round differently, and another word may win."""
    exact = models.Dtypes("cpu", torch.float32, torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "pick_dtypes", lambda: exact)
        return models.load_4bit(models.PROFILES["smollm2-135m"])


@pytest.fixture(scope="session")
def gemma_1b(tmp_path_factory):
    """A folder with Gemma 3 1B in full size, in bfloat16, with random weights: 2 GB.

    The tokenizer is that of the 270M, which has the same tokens.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from qlora_kit.memory import architectures

    folder = tmp_path_factory.mktemp("gemma-3-1b")
    _, small = models.get_weights(models.PROFILES["gemma-3-270m"])
    AutoTokenizer.from_pretrained(small).save_pretrained(folder)
    config = AutoConfig.for_model(**architectures.find("gemma-3-1b-pt").config)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def write_notebook():
    """Writes a notebook of the given cells, the first of which holds its parameters."""

    def write(path, *sources):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        cells[0].metadata["tags"] = ["parameters"]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(book, path)
        return path

    return write


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of one's own."""
    monkeypatch.setenv("QLORA_KIT_CACHE", str(tmp_path / "cache"))
    return fetch.cache_dir()


@pytest.fixture
def python():
    """Runs a piece of Python in a process of its own and returns the finished process."""
    import os
    import subprocess

    def run(code, *arguments, **environment):
        return subprocess.run(
            [sys.executable, *arguments, "-c", code],
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            capture_output=True,
            text=True,
        )

    return run

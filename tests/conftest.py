import sys

import nbformat
import pytest
import torch

from qlora_kit import fetch, models
from qlora_kit.bootstrap import ROOT


@pytest.fixture(scope="session")
def smollm2():
    """The default model in 4 bit, and its tokenizer, in float32 on every processor: in bfloat16 a
    batch and a single row round differently, and another word may win."""
    exact = models.Dtypes("cpu", torch.float32, torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "pick_dtypes", lambda: exact)
        return models.load_4bit(models.PROFILES["smollm2-135m"])


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

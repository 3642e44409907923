"""Two tiers: quick by default, everything with --full. Notebooks run in their short form unless
QLORA_KIT_PROFILE is set; with --full each of their cells runs twice. What needs a GPU is skipped
where there is none."""

import os

import pytest
from nbval.plugin import IPyNbCell


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="add the slow tests (up to an hour)")


def pytest_configure(config):
    os.environ["PYTHONPATH"] = str(config.rootpath)  # notebooks run in their own folder
    os.environ.setdefault("QLORA_KIT_PROFILE", "smollm2-135m-short")


def pytest_collection_modifyitems(config, items):
    reasons = {}
    if not config.getoption("--full"):
        reasons["full"] = "slow: runs with --full"
    if any(item.get_closest_marker("gpu") for item in items) and not a_gpu_is_there():
        reasons["gpu"] = "needs a GPU that torch can use"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A learner runs a cell again, and what follows must not change. In 06 that would train again:
    tests/test_notebook_06.py runs its cells twice on a small model."""
    yield
    is_cell = isinstance(item, IPyNbCell) and not item.path.name.startswith("06")
    if is_cell and item.config.getoption("--full"):
        item.options["check"] = False  # its own output may well be another
        item.runtest()


def a_gpu_is_there():
    from qlora_kit.cuda import usable_cuda  # here, since it imports torch

    return usable_cuda()

"""Two tiers: quick by default, everything with --full. Notebooks run in their short form unless
--full is given or QLORA_KIT_PROFILE is set. What needs a GPU is skipped where there is none."""

import os

import pytest


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="add the slow tests (up to an hour)")


def pytest_configure(config):
    os.environ["PYTHONPATH"] = str(config.rootpath)  # notebooks run in their own folder
    if not config.getoption("--full"):
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


def a_gpu_is_there():
    from qlora_kit.cuda import usable_cuda  # here, since it imports torch

    return usable_cuda()

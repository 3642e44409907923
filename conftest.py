"""Two tiers: quick by default, everything with --full. Notebooks run in their short form unless
--full is given or QLORA_KIT_PROFILE is set."""

import os

import pytest


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="add the slow tests (up to an hour)")


def pytest_configure(config):
    os.environ["PYTHONPATH"] = str(config.rootpath)  # notebooks run in their own folder
    if not config.getoption("--full"):
        os.environ.setdefault("QLORA_KIT_PROFILE", "smollm2-135m-short")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"):
        return
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker(pytest.mark.skip(reason="slow: runs with --full"))

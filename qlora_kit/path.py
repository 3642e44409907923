"""The path of notebooks, as the README's table has it: the one place for minutes and memory."""

import re
from typing import NamedTuple

from qlora_kit.bootstrap import ROOT

ROW = r"^\| \[(\d\d) ([^\]]+)\]\(notebooks/.*?\) \| ([^|]+) \| ([^|,]+), ([\d.]+) GB of memory \|"


class Stage(NamedTuple):
    """A notebook. `leaves` is what a learner leaves with, `time` and `memory` (the peak, in bytes)
    are those of a run on two CPU cores with the default model."""

    number: str
    name: str
    leaves: str
    time: str
    memory: float


def stages():
    """The notebooks of the path, in order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [
        Stage(number, name, leaves, time, float(gigabytes) * 1e9)
        for number, name, leaves, time, gigabytes in re.findall(ROW, text, re.MULTILINE)
    ]

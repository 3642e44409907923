"""A doctor for fine-tuning: each function looks at one thing and returns a list of findings.

`machine()` looks at this machine and has an OK line for each subject. The others are about training
and silent where all is well: `model`, `batch`, `first_step`, `merge`, and `adapter` for a saved
one; an OK line says what was left unchecked. No check changes what it looks at. `report` makes text
of what they found. `watch` looks after the first steps of a training and stops it on an error.
`tokens` counts what a trainer's rows teach.

Libraries are imported where they are used: the doctor must run where some are missing.
"""

from qlora_kit.doctor.adapter import adapter
from qlora_kit.doctor.batch import batch, tokens
from qlora_kit.doctor.findings import LEVELS, Finding, report
from qlora_kit.doctor.machine import machine
from qlora_kit.doctor.model import first_step, merge, model
from qlora_kit.doctor.watch import watch

__all__ = [
    "LEVELS",
    "Finding",
    "adapter",
    "batch",
    "first_step",
    "machine",
    "merge",
    "model",
    "report",
    "tokens",
    "watch",
]

"""The memory of training: predicted by formulas, tracked in a fake step, measured in a real one.

`budget(architecture, setup, gpu)` is arithmetic; importing this package loads neither torch nor a
model. `memory.xray` and `memory.meter` need torch and are imported by themselves.
"""

from qlora_kit.memory.architectures import Architecture
from qlora_kit.memory.formulas import (
    RESERVED,
    STATIC,
    TERMS,
    Budget,
    budget,
    fits,
    needed,
)
from qlora_kit.memory.gpus import GIB, GPUS, MIB, Gpu, find_gpu, this_machine
from qlora_kit.memory.machine import free_bytes, peak_bytes
from qlora_kit.memory.report import advice, changes, table
from qlora_kit.memory.setup import LINEARS, LOSSES, METHODS, OPTIMIZERS, Setup
from qlora_kit.memory.static import layer_constants, optimizer_states, weights

__all__ = [
    "GIB",
    "GPUS",
    "LINEARS",
    "LOSSES",
    "METHODS",
    "MIB",
    "OPTIMIZERS",
    "RESERVED",
    "STATIC",
    "TERMS",
    "Architecture",
    "Budget",
    "Gpu",
    "Setup",
    "advice",
    "budget",
    "changes",
    "find_gpu",
    "fits",
    "free_bytes",
    "layer_constants",
    "needed",
    "optimizer_states",
    "peak_bytes",
    "table",
    "this_machine",
    "weights",
]

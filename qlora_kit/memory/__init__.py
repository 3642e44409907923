"""The memory of training: predicted by formulas, tracked in a fake step, measured in a real one.

`budget(architecture, setup, gpu)` is arithmetic; importing this package loads neither torch nor a
model. `memory.xray` and `memory.meter` need torch and are imported by themselves.
"""

from qlora_kit.memory.architectures import Architecture
from qlora_kit.memory.formulas import Budget, budget
from qlora_kit.memory.gpus import GIB, GPUS, MIB, Gpu, find_gpu, this_machine
from qlora_kit.memory.machine import free_bytes, peak_bytes
from qlora_kit.memory.moments import STATIC, TERMS
from qlora_kit.memory.report import advice, changes, table
from qlora_kit.memory.reserved import RESERVED, Needed, fits, needed, verdict
from qlora_kit.memory.setup import (
    LINEARS,
    LOSSES,
    METHODS,
    OPTIMIZERS,
    OUTSIDE,
    Setup,
    float32_stream,
    formats,
)
from qlora_kit.memory.static import layer_constants, optimizer_states, weights

__all__ = [
    "GIB",
    "GPUS",
    "LINEARS",
    "LOSSES",
    "METHODS",
    "MIB",
    "OPTIMIZERS",
    "OUTSIDE",
    "RESERVED",
    "STATIC",
    "TERMS",
    "Architecture",
    "Budget",
    "Gpu",
    "Needed",
    "Setup",
    "advice",
    "budget",
    "changes",
    "find_gpu",
    "fits",
    "float32_stream",
    "formats",
    "free_bytes",
    "layer_constants",
    "needed",
    "optimizer_states",
    "peak_bytes",
    "table",
    "this_machine",
    "verdict",
    "weights",
]

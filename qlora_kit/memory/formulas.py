"""The memory of a training step in closed formulas: arithmetic, without weights and without a GPU.

A step is at its fullest in one of these moments, and the budget is the fullest of them, term by
term:

* `loss`: the logits of every token are there, several times over, and every checkpoint;
* `layer`: one layer was computed a second time for its backward pass, all else are checkpoints;
* `dequantised`: the same, while a 4-bit weight is unpacked (the fullest where tokens are few);
* `softmax`: the same, while eager attention's scores are differentiated;
* `step`: every gradient is there, and what the optimizer needs to work;
* `embedding`: with full fine-tuning of an embedding that is the output layer too, the gradients
  of both uses and their sum.

Nothing here is fitted: each term is a list of tensors, found with the X-ray and explained where it
is computed. The names of the sizes are those of `architectures`.
"""

from dataclasses import dataclass

from qlora_kit.errors import KitError
from qlora_kit.memory.gpus import Gpu
from qlora_kit.memory.moments import STATIC, moments
from qlora_kit.memory.reserved import RESERVED, fits


@dataclass(frozen=True)
class Budget:
    """The terms of a step in bytes, at each of its moments, and the fullest of these.

    `terms` are those of the fullest moment; their sum is `peak_allocated`, to be compared with
    torch.cuda.max_memory_allocated. `peak_reserved` is the range in which
    torch.cuda.max_memory_reserved is to be expected: the pool has gaps. `static` is what is there
    all the time.
    """

    moments: dict
    gpu: Gpu

    @property
    def moment(self):
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def terms(self):
        return self.moments[self.moment]

    @property
    def peak_allocated(self):
        return sum(self.terms.values())

    @property
    def static(self):
        return sum(self.terms[name] for name in STATIC)

    @property
    def peak_reserved(self):
        return tuple(int(share * self.peak_allocated) for share in (RESERVED[0], RESERVED[-1]))

    @property
    def fits(self):
        return fits(self.peak_allocated, self.gpu)


def budget(architecture, setup, gpu):
    """The Budget of one training step.

    Raises KitError for an architecture that the formulas do not cover.
    """
    if not architecture.covered:
        raise KitError(
            f"The formulas do not cover {architecture.name} (model type "
            f"{architecture.model_type}); the X-ray may: add --xray, or call xray.trace."
        )
    return Budget(moments(architecture, setup, gpu), gpu)

"""The adapter inside a model: its layers, and the two factors of each.

PEFT writes the update of a matrix as B A (Hu et al. 2021, arXiv 2106.09685, section 4.1). B starts
at zero; in an embedding's adapter it is A that does.
"""

from peft.tuners.tuners_utils import BaseTunerLayer


def tuner_layers(model):
    """The modules that PEFT has put around those of the base, by name."""
    return {n: module for n, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def last(name):
    """The last part of a module's name, such as q_proj."""
    return name.rpartition(".")[2]


def factors(model):
    """For each matrix with an active adapter: (name, factor) of the one that starts at random, and
    of the one that starts at zero. The names are those of `model.named_parameters()`."""
    for name, layer in tuner_layers(model).items():
        for adapter in layer.active_adapters:
            if adapter in getattr(layer, "lora_A", {}):
                a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
                yield (
                    (f"{name}.lora_A.{adapter}.weight", a),
                    (f"{name}.lora_B.{adapter}.weight", b),
                )
            if adapter in getattr(layer, "lora_embedding_A", {}):
                a, b = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
                yield (
                    (f"{name}.lora_embedding_B.{adapter}", b),
                    (f"{name}.lora_embedding_A.{adapter}", a),
                )

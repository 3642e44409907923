"""Findings about the frozen base: is it quantised as QLoRA wants it, and do its dtypes fit."""

from collections import Counter

import bitsandbytes
import torch

from qlora_kit import models
from qlora_kit.doctor.findings import error, warning
from qlora_kit.doctor.layers import tuner_layers

SLOW = 2  # times; `models.faster_dtype` takes bfloat16 only where it is clearly faster


def findings(model):
    layers = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    # a tied output layer can be of that class, and its weight is the embedding, in 16 bits
    layers = [m for m in layers if isinstance(m.weight, bitsandbytes.nn.Params4bit)]
    if layers:
        yield from _type(model, layers)
        yield from _products(layers)
        yield from _repacked(layers)
    elif tuner_layers(model) and not _otherwise_quantised(model):
        yield warning(
            "no layer of the base is quantised",
            "This is LoRA and not QLoRA: in 16 bits the base takes four times the memory.",
            "load it with quantization_config=BitsAndBytesConfig(load_in_4bit=True, "
            'bnb_4bit_quant_type="nf4"), without llm_int8_skip_modules; if LoRA on an unquantised '
            "base is meant: nothing",
        )
    yield from _overflow(model)


def _otherwise_quantised(model):
    """In 8 bits, or by another library."""
    quantizer = getattr(model, "hf_quantizer", None)
    return quantizer and not getattr(quantizer.quantization_config, "load_in_4bit", False)


def _type(model, layers):
    types = Counter(layer.weight.quant_type for layer in layers)
    if types["fp4"]:
        stored = getattr(getattr(model, "hf_quantizer", None), "pre_quantized", False)
        whose = "The checkpoint was in 4 bits already, and its own settings win over those asked "
        yield warning(
            f"{types['fp4']} of {len(layers)} 4-bit layers are fp4, and not nf4",
            (f"{whose}for. " if stored else "fp4 is what BitsAndBytesConfig takes unless told. ")
            + "Its levels fit the weights of a network less well (02 measures it).",
            ("take a checkpoint that is not quantised, and " if stored else "")
            + 'load it with BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")',
        )


def _products(layers):
    """The dtype in which 4-bit layers multiply, against the one that this device is fast in."""
    for (device, dtype), count in Counter(
        (layer.weight.device.type, layer.compute_dtype) for layer in layers
    ).items():
        better = _better(device, dtype)
        if better:
            yield warning(
                f"{count} 4-bit layers multiply in {_short(dtype)} on this {device.upper()}",
                f"It is several times as fast in {_short(better)}. A checkpoint that was in 4 bits "
                "already keeps the dtype that it was saved with, whatever you ask for.",
                f"[setattr(m, 'compute_dtype', {better}) for m in model.modules() if hasattr(m, "
                "'compute_dtype')]",
            )


def _better(device, dtype):
    """A compute dtype that is much faster here than this one; None where there is none."""
    if device == "cuda":
        best = models.pick_dtypes().compute  # float16 where bfloat16 is emulated
        slow = dtype == torch.float32 or (dtype, best) == (torch.bfloat16, torch.float16)
        return best if slow else None
    if device != "cpu" or dtype == torch.float32 or models.chosen_dtype() == dtype:
        return None
    seconds = models.seconds_of_a_product
    slow = dtype == torch.float16 or seconds(dtype) > SLOW * seconds(torch.float32)
    return torch.float32 if slow else None


def _short(dtype):
    return str(dtype).removeprefix("torch.")


def _overflow(model):
    """Gemma 3's activations exceed float16's 65,504 (appendix a1 measures it)."""
    kind = getattr(getattr(model, "config", None), "model_type", "")
    if kind.startswith("gemma3") and model.dtype == torch.float16:
        yield error(
            "a Gemma 3 in float16",
            "Its activations grow beyond 65,504, which float16 cannot hold: the loss is nan.",
            "load it with dtype=models.pick_dtypes().model",
        )


def _repacked(layers):
    """bitsandbytes 0.50.2 rewrites a 4-bit weight for a faster kernel in a forward pass in eval
    mode, on a CPU with AVX512-BF16 (nn/modules.py, Linear4bit.forward)."""
    layers = [layer for layer in layers if layer.weight.device.type == "cpu"]
    states = [layer.weight.quant_state for layer in layers]
    packed = sum(getattr(state, "packing_format_for_cpu", False) for state in states)
    unguarded = sum(getattr(layer, "support_avx512bf16_for_cpu", False) for layer in layers)
    if packed:
        yield error(
            f"{packed} 4-bit weights were repacked for answering",
            "A backward pass and a merge read them in the old order: the loss looks right and the "
            "gradients are wrong.",
            "load the model anew, and call models.guard_cpu_repacking(model) right after it",
        )
    elif unguarded:
        yield error(
            f"{unguarded} 4-bit weights can be repacked on this processor",
            "The first answer in eval mode rewrites them. Training or merging after it uses wrong "
            "values, and nothing says so.",
            "models.guard_cpu_repacking(model), right after loading",
        )

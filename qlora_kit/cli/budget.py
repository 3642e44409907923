"""`python3 -m qlora_kit budget`: what a training step needs, as a table or as JSON."""

import json

from qlora_kit import memory, models
from qlora_kit.cuda import usable_cuda
from qlora_kit.memory import architectures


def run(arguments):
    profile = models.PROFILES.get(arguments.model.lower())
    architecture = architectures.find(profile or arguments.model)
    gpu = which_gpu(arguments.gpu)
    setup = step(arguments, architecture, gpu)
    replayed = None
    if arguments.xray or not architecture.covered:
        from qlora_kit.memory import xray

        result = xray.trace(architecture, setup, gpu)
        how = "by the X-ray"
        if not architecture.covered:
            how += f" (there are no formulas for the model type {architecture.model_type})"
        reserved = (result.peak_reserved,)
        if setup.method != "full":  # there the X-ray's pool is too high
            replayed = result.peak_reserved
    else:
        result = memory.budget(architecture, setup, gpu)
        how, reserved = f"by the formulas, fullest moment: {result.moment}", result.peak_reserved
    if arguments.json:
        print(json.dumps(answer(result, reserved, gpu, replayed)))
        return 0
    title = f"{architecture.name}, {setup.method}, {setup.batch} x {setup.seq} tokens, {how}"
    print("\n".join(memory.table(title, result.terms, reserved, gpu, replayed)))
    print(f"Number formats: {memory.formats(setup, gpu)}.{source(arguments, setup, gpu)}")
    if not memory.fits(result.peak_allocated, gpu, replayed) and architecture.covered:
        print("What helps:")
        print("\n".join(memory.advice(architecture, setup, gpu)))
    return 0


def which_gpu(name):
    """The Gpu of that name; without one the GPU at hand, else a T4."""
    if name is None and usable_cuda():
        return memory.this_machine()
    return memory.find_gpu(name or "T4")


def step(arguments, architecture, gpu):
    """The Setup that the options describe; what they leave open follows from GPU and model."""
    targets = arguments.targets.split(",") if arguments.targets is not None else memory.LINEARS
    prepare_kbit = arguments.prepare_kbit
    if prepare_kbit is None:
        prepare_kbit = memory.float32_stream(architecture, gpu, arguments.method)
    return memory.Setup(
        method=arguments.method,
        batch=arguments.batch,
        seq=arguments.seq,
        rank=arguments.rank,
        targets=tuple(name.strip() for name in targets),
        double_quant=not arguments.no_double_quant,
        prepare_kbit=prepare_kbit,
        compute_dtype=arguments.compute_dtype,
        autocast=arguments.autocast,
        adapter_dtype=arguments.adapter_dtype,
        optimizer=arguments.optimizer,
        checkpointing=not arguments.no_checkpointing,
        loss=arguments.loss,
        dropout=arguments.dropout,
        attention=arguments.attention,
        keep_outputs=arguments.keep_outputs,
        ddp=arguments.ddp,
    )


def source(arguments, setup, gpu):
    """Where the formats come from, and which option changes them."""
    if arguments.prepare_kbit is not None or (setup.method != "qlora" and not setup.prepare_kbit):
        return ""
    if setup.prepare_kbit:
        why = f"{gpu.name} has no bfloat16"
        return f" That is because {why}; --no-prepare-kbit: 16 bits between layers."
    return " With --prepare-kbit: float32 between layers, as PEFT prepares a 4-bit model."


def answer(result, reserved, gpu, replayed):
    """The object that --json prints. All sizes in bytes."""
    total = memory.needed(result.peak_allocated, gpu, replayed)
    return {
        "peak_allocated_bytes": result.peak_allocated,
        "peak_reserved_bytes": reserved[-1],
        "peak_reserved_low_bytes": reserved[0],
        "nvidia_smi_bytes": total,
        "nvidia_smi_low_bytes": total.least,
        "nvidia_smi_high_bytes": total.most,
        "static_bytes": result.static,
        "terms": result.terms,
        "fits": memory.fits(result.peak_allocated, gpu, replayed),
    }

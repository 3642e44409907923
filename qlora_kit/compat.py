"""Names that moved between the versions of transformers that the kit runs with (5.15 on Colab)."""

import transformers

# transformers 5.23 renamed activation checkpointing: model methods and trainer argument.
CHECKPOINTING = (
    "activation_checkpointing"
    if hasattr(transformers.PreTrainedModel, "activation_checkpointing_enable")
    else "gradient_checkpointing"
)


def dequantised_gguf():
    """The arguments of `from_pretrained` with which a GGUF file becomes ordinary weights.

    From transformers 5.2x on a GGUF stays quantised unless told otherwise; before, it is always
    dequantised and the class does not exist.
    """
    if hasattr(transformers, "GgufConfig"):
        return {"quantization_config": transformers.GgufConfig(dequantize=True)}
    return {}

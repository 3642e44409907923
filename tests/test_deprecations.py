"""A deprecation of a library that the kit teaches ends a test, and those that are known exist."""

import logging
import warnings

import deprecations
import pytest
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig


def tiny():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )


@pytest.mark.parametrize("kind", [DeprecationWarning, FutureWarning])
def test_a_deprecation_warned_of_is_an_error(kind):
    for module in ("transformers.trainer", "peft", "trl.trainer.sft_trainer", "qlora_kit.models"):
        with pytest.raises(kind, match="use the other"):
            warnings.warn_explicit("use the other", kind, "file.py", 1, module)
    with pytest.raises(kind, match="use the other"):
        warnings.warn("use the other", kind, stacklevel=1)  # of this module


def test_a_deprecation_that_is_logged_is_an_error():
    with pytest.raises(DeprecationWarning, match="torch_dtype"):
        logging.getLogger("transformers.modeling_utils").warning("`torch_dtype` is deprecated!")


def test_the_warnings_of_other_libraries_are_none():
    warnings.warn_explicit("script is deprecated", DeprecationWarning, "file.py", 1, "torch.jit")
    logging.getLogger("matplotlib").warning("a style is deprecated")


def quantised():
    model = tiny()
    model.is_loaded_in_4bit = True  # which is what PEFT goes by
    return model


CALLS = {
    "`is_gradient_checkpointing` is deprecated": lambda: get_peft_model(
        tiny(), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    ),
    "`gradient_checkpointing_enable` is deprecated": lambda: prepare_model_for_kbit_training(
        quantised()
    ),
    "`gradient_checkpointing` is deprecated": lambda: SFTConfig(
        output_dir="unused", bf16=False, use_cpu=True, report_to="none"
    ),
}


@pytest.mark.parametrize("known", deprecations.KNOWN)
def test_what_is_known_still_happens_inside_a_library(known):
    with pytest.warns(FutureWarning) as seen:
        CALLS[known]()
    assert any(known in str(one.message) for one in seen), "it can go from the list"

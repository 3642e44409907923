"""One meaning a word: the word tables of the notebooks are those of the glossary."""

import json
import re

import pytest

from qlora_kit.glossary import WORDS
from qlora_kit.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def rows(path):
    """The rows of a notebook's word table: the word without what is in brackets, its meaning."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "".join(cells[0]["source"]).partition("| word | meaning |\n|---|---|\n")[2]
    for word, meaning in re.findall(r"^\| (.+?) \| (.+) \|$", text, re.MULTILINE):
        yield re.sub(r" \(.+\)$", "", word), meaning


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_word_means_in_a_notebook_what_it_means_in_the_glossary(path):
    assert list(rows(path)), "no word table"
    other = {
        word: (meaning, WORDS.get(word))
        for word, meaning in rows(path)
        if word not in WORDS
        # A notebook may add what holds in it alone.
        or not re.fullmatch(re.escape(WORDS[word]) + r"([,;:]? .+)?", meaning)
    }
    assert not other


def test_no_word_stands_in_the_glossary_twice():
    words = [word for row in WORDS for word in row.split(", ")]
    assert sorted(words) == sorted(set(words))


def test_the_glossary_has_no_word_that_no_table_has():
    used = {word for path in NOTEBOOKS for word, _ in rows(path)}
    assert set(WORDS) == used

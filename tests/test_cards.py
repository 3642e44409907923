"""Cards: what tickets and models say is shown as it is, whole, with its verdict in words."""

import html.parser
import itertools
import re

import matplotlib.pyplot as plt
import pytest

from qlora_kit.figures import cards

# Let through by GitHub (html-pipeline's list) and by nbconvert's `clean_html`, both.
ALLOWED = {"table", "tr", "td", "div", "b", "br", "span"}
NASTY = "<script>alert('x')</script> & \"y\" <b>bold</b>"
CHANCES = {"billing": 0.25, "a<b": 0.75}


class Reader(html.parser.HTMLParser):
    """The elements of a page, those that are open, and its cells' texts row by row."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.rows = set(), [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")
        elif tag == "br":
            self.rows[-1][-1] += "\n"
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.rows[-1][-1] += data


def read(page):
    reader = Reader(page)
    assert not reader.open and reader.tags <= ALLOWED
    return reader.rows


def read_card(card):
    return read(cards.Cards(card)._repr_html_())


def test_a_card_says_what_stands_in_it_row_by_row():
    card = {"customer": "Tea?", "tuned": ("app, low\n\n  Yes. ", "right"), "base": "No."}
    assert read_card(card) == [
        ["customer", "Tea?"],
        ["tuned\n✓ right", "app, low\nYes."],
        ["base", "No."],
    ]


def test_what_customers_models_and_notebooks_write_is_text():
    [row] = read_card({NASTY: NASTY})
    assert row == [NASTY, NASTY]
    first, *_, last = read(cards.side_by_side({NASTY: cards.Reading(NASTY, NASTY, CHANCES)}))
    assert first == ["", NASTY] and last == ["a<b", "75%"]


def test_a_text_that_is_none_has_no_row_and_an_empty_one_says_so():
    assert read_card({"policy": None, "reference": (None, "right"), "base": " \n"}) == [
        ["base", "(nothing)"]
    ]


def test_each_verdict_has_a_sign_and_a_word_and_several_are_counted():
    for verdict, sign in cards.SIGNS.items():
        [[beside, _]] = read_card({"tuned": ("x", verdict)})
        assert beside == f"tuned\n{sign} {verdict}"
    [[beside, _]] = read_card({"tuned": ("x", ["false", "right", "false"])})
    assert beside == "tuned\n✓ 1 right\n✗ 2 false"
    with pytest.raises(KeyError):
        cards.Cards({"tuned": ("x", "rihgt")})._repr_html_()


def test_one_false_statement_outweighs_the_right_ones_in_colour():
    def edge(*verdicts):
        page = cards.Cards({"tuned": ("x", list(verdicts))})._repr_html_()
        return re.findall("border-left:6px solid (#[0-9A-F]+)", page)

    assert edge("right", "false") == edge("false") != edge("right")
    assert edge("right", "evasive") == edge("right") != edge("evasive")
    assert edge() == []


def test_as_text_a_card_keeps_its_words_whole():
    long = "https://example.com/" + "a" * 100
    text = repr(cards.Cards({"customer": f"{'kettle ' * 30}{long}", "tuned": ("no", "false")}))
    assert long in text
    words = " ".join(text.split())
    assert words == f"customer {'kettle ' * 30}{long} tuned [✗ false] no"
    assert max(len(line) for line in text.splitlines() if long not in line) <= 76


def test_show_displays_the_cards(monkeypatch):
    shown = []
    monkeypatch.setattr(cards, "display", shown.append)
    cards.show({"customer": "one"}, {"customer": "two"})
    assert [repr(each) for each in shown] == ["customer  one\n\ncustomer  two"]


def test_side_by_side_gives_each_model_a_column_and_its_likeliest_category_is_bold():
    readings = {
        "base": cards.Reading("app", "Hm.", {"app": 0.9, "repair": 0.1}),
        "tuned": cards.Reading("repair, low", "Yes.", {"app": 0.2, "repair": 0.8}),
    }
    page = cards.side_by_side(readings)
    assert read(page) == [
        ["", "base", "tuned"],
        ["filed", "app", "repair, low"],
        ["reply", "Hm.", "Yes."],
        ["app", "90%", "20%"],
        ["repair", "10%", "80%"],
    ]
    assert re.findall("<b>([0-9]+)%", page) == ["90", "80"]
    widths = [int(width) for width in re.findall(";width:([0-9]+)px", page)]
    assert [width / widths[0] for width in widths] == pytest.approx([1, 2 / 9, 1 / 9, 8 / 9], 0.1)


@pytest.fixture
def drawn():
    readings = {
        "base": cards.Reading("$5 and $6_a", "Hm 日.", {"app": 0.9, "repair": 0.1}),
        "tuned": cards.Reading("repair, low", "word " * 60, {"app": 0.2, "repair": 0.8}),
    }
    figure = cards.picture(["My kettle.", "ticket " * 30], [readings, readings])
    yield figure
    plt.close(figure)


def test_the_picture_has_bars_of_each_model_for_each_ticket(drawn):
    for axes in drawn.axes[1::2]:
        base, tuned = ([bar.get_width() for bar in bars] for bars in axes.containers)
        assert (base, tuned) == ([0.9, 0.1], [0.2, 0.8])
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["app", "repair"]
    [legend] = [axes.get_legend() for axes in drawn.axes if axes.get_legend()]
    assert [text.get_text() for text in legend.get_texts()] == ["base", "tuned"]


@pytest.mark.filterwarnings("error")
def test_the_picture_s_texts_are_whole_do_not_overlap_and_have_no_missing_signs(drawn):
    drawn.draw_without_rendering()
    renderer = drawn.canvas.get_renderer()
    for left, right in zip(drawn.axes[::2], drawn.axes[1::2], strict=True):
        texts = [text for text in left.texts if text.get_text()]
        assert not any(text.get_parse_math() for text in texts)  # two dollars are no formula
        boxes = [text.get_window_extent(renderer) for text in texts]
        assert all(a.y0 >= b.y1 - 1 for a, b in itertools.pairwise(boxes))
        assert boxes[-1].y0 >= left.get_window_extent(renderer).y0 - 1
        ticks = [tick.get_window_extent(renderer) for tick in right.get_yticklabels()]
        assert max(box.x1 for box in boxes) < min(tick.x0 for tick in ticks)
    words = " ".join(text.get_text() for text in drawn.axes[0].texts)
    assert words.count("word") == 60 and "base: $5 and $6_a" in words and "Hm □." in words

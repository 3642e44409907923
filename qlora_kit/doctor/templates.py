"""What a tokenizer's chat template writes around the texts of a conversation, as tokens."""

import itertools
from dataclasses import dataclass

ROLES = ("user", "system", "assistant", "developer", "tool")
MARKS = {role: f"{role.upper()}0" for role in ROLES}  # texts that no template writes by itself
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {}},
    },
}


@dataclass(frozen=True)
class Form:
    """The tokens of a template: lists of ids.

    openings: by role, what stands before the first text of a conversation that this role begins.
    header: what stands before every answer, in a row as well as in the generation prompt.
    asked: the whole generation prompt; longer than the header if rows lack some of it.
    tail: what follows an answer. Blank tokens at their ends are left out: they merge with texts.
    once: whether an opening stands at the start of a conversation alone, and not of every turn.
    """

    openings: dict
    header: list
    asked: list
    tail: list
    once: bool


def form(tokenizer):
    """The Form of a tokenizer's template; None without one, or if it cannot be told from text."""
    if not tokenizer.chat_template or not tokenizer.is_fast:
        return None
    user, answer = _turn("user"), _turn("assistant")
    try:
        whole = _Written(tokenizer, [user, answer])
        asked = _Written(tokenizer, [user], add_generation_prompt=True)
        alone = _Written(tokenizer, [user])
        after, before = whole.after("user"), whole.before("assistant")
        trained, wanted = whole.ids[after:before], asked.ids[asked.after("user") :]
    except Exception:  # a template may raise whatever it likes
        return None
    prompt = asked.ids[shared(alone.ids, asked.ids) :]
    if prompt and set(prompt) & _special(tokenizer):  # nothing else in a row looks so
        trained, wanted = trained[len(wanted) - len(prompt) :], prompt
    header = _bare(tokenizer, trained[: shared(trained, wanted)])
    if not set(header) - {tokenizer.unk_token_id}:
        return None
    openings = dict(_openings(tokenizer))
    openings = {role: ids for role, ids in openings.items() if tokenizer.unk_token_id not in ids}
    twice = _ids(tokenizer, [user, answer, user, answer])
    return Form(
        openings=openings,
        header=header,
        asked=_bare(tokenizer, wanted),
        tail=_bare(tokenizer, whole.ids[whole.after("assistant") :]),
        once="user" in openings and len(places(openings["user"], twice)) == 1,
    )


class _Written:
    """Some turns as the template writes them: the text, its ids, and which token is where."""

    def __init__(self, tokenizer, turns, **settings):
        self.text = tokenizer.apply_chat_template(turns, tokenize=False, **settings)
        made = tokenizer(self.text, add_special_tokens=False, return_offsets_mapping=True)
        self.ids, self.places = made["input_ids"], made["offset_mapping"]

    def before(self, role):
        """How many tokens end before the text of this role."""
        start = self.text.index(MARKS[role])
        return sum(end <= start for _, end in self.places)

    def after(self, role):
        """The number of the first token that begins after the text of this role."""
        stop = self.text.index(MARKS[role]) + len(MARKS[role])
        return sum(start < stop for start, _ in self.places)


def _turn(role):
    return {"role": role, "content": MARKS[role]}


def _openings(tokenizer):
    """Each role with what a template writes before its text, if the template lets it begin.

    Tools may stand in the middle of that: `tools` is what both ways have in common.
    """
    for role in ROLES:
        rest = [] if role == "assistant" else [_turn("assistant")]
        turns = [_turn(role), *([_turn("user")] if role != "user" else []), *rest]
        try:
            plain = _Written(tokenizer, turns)
            yield role, _bare(tokenizer, plain.ids[: plain.before(role)])
            if role == "user":
                tools = _Written(tokenizer, turns, tools=[TOOL])
                before = plain.ids[: plain.before(role)]
                yield "tools", _bare(tokenizer, before[: shared(before, tools.ids)])
        except Exception:  # this template does not know the role
            continue


def _bare(tokenizer, ids):
    """The tokens without blank ones at both ends: they merge with the text beside them."""
    said = [i for i, token in enumerate(ids) if tokenizer.decode([token]).strip()]
    return ids[said[0] : said[-1] + 1] if said else []


def _special(tokenizer):
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {tokenizer.unk_token_id}


def shared(some, others):
    """How many tokens two lists have in common at their starts."""
    pairs = zip(some, others, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def places(part, ids):
    """Where a list of tokens stands in another one."""
    size = len(part)
    found = [i for i, token in enumerate(ids) if token == part[0]] if part else []
    return [i for i in found if ids[i : i + size] == part]


def _ids(tokenizer, turns):
    """The tokens of some turns as the template writes them; without one, as plain text."""
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    return tokenizer(" ".join(turn["content"] for turn in turns))["input_ids"]


def turn_end(tokenizer):
    """The id of the token that ends an answer in the template, such as <|im_end|>; else eos.

    None if the template writes no conversation of a question and an answer. Blanks after the end do
    not count (Gemma's turns end in a newline, which is an added token there).
    """
    if not tokenizer.chat_template:
        return tokenizer.eos_token_id
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    try:
        answer = _ids(tokenizer, turns)[len(_ids(tokenizer, turns[:1])) :]
    except Exception:  # a template may raise whatever it likes
        return None
    last = next((token for token in reversed(answer) if tokenizer.decode([token]).strip()), None)
    return last if last in _special(tokenizer) else tokenizer.eos_token_id

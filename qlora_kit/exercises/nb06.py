"""The exercises of notebook 06."""

from qlora_kit.exercises import Exercise, call


def _labels(answer):
    tokens, prompt_length = [1, 50, 60, 70, 1, 80, 90, 2], 5
    given = list(call(answer, tokens, prompt_length))
    right = [-100] * prompt_length + tokens[prompt_length:]
    if len(given) != len(tokens):
        return f"{len(tokens)} tokens need {len(tokens)} labels, and there are {len(given)}."
    if given == tokens:
        return "so the model would learn to write tickets: mask the prompt with -100."
    if given == tokens[:prompt_length] + [-100] * (len(tokens) - prompt_length):
        return "the other way round: the prompt is masked, the completion is learnt."
    if given == [*right[:-1], -100]:
        return "the stop token is masked, so the model would never learn to end an answer."
    if given == [-100] * prompt_length + tokens[prompt_length + 1 :] + [-100]:
        return "no shift is wanted here: the model moves the labels by one place itself."
    if given == [0] * prompt_length + tokens[prompt_length:]:
        return "0 is a token like any other; the mark for 'not learnt' is -100."
    if given != right:
        return "the first prompt_length labels are -100, the others are the tokens themselves."


labels = Exercise(
    _labels,
    why="The prompt is read and not learnt; the completion is learnt, its stop token included.",
    hint="A list of prompt_length times -100, and then the rest of the tokens.",
    solution="""\
def labels(tokens, prompt_length):
    return [-100] * prompt_length + tokens[prompt_length:]


answer = labels""",
)


def _steps(answer):
    for value, misconception in (
        (500, "that many examples are in one epoch; several of them share a step."),
        (125, "accumulation joins 2 batches of 4 to one step."),
        (250, "a step takes in 4 x 2 examples, not 2."),
        (62, "the last step of an epoch is smaller, but it is a step."),
        (62.5, "half a step cannot be taken: the last step of an epoch is smaller."),
        (126, "one epoch was asked for."),
    ):
        if answer == value:
            return misconception
    if answer != 63:
        return "divide the examples by those that one step takes in, and round up."


steps = Exercise(
    _steps,
    why="A step takes in 4 x 2 = 8 examples, and 500 / 8 = 62.5 is rounded up to 63.",
    hint="How many examples has the model seen after one step?",
    solution="""\
answer = math.ceil(500 / (4 * 2))""",
)


def _accuracy(answer):
    wanted = ["billing", "app", "returns", "app"]
    given = ["billing, low", "app, urgent", "a returns label, low", "whatapp, low"]
    share = call(answer, given, wanted)
    for value, misconception in (
        (1.0, "'a returns label' and 'whatapp' are no categories, though they contain one."),
        (0.75, "'a returns label' or 'whatapp' was taken for a category: compare whole words."),
        (0.0, "the answers hold a priority as well; take what stands before the comma."),
        (2, "a share is asked for: divide by the number of answers."),
        (50.0, "a share is between 0 and 1."),
    ):
        if share == value:
            return misconception
    if share != 0.5:
        return "two of the four answers have the right category, so the share is a half."


accuracy = Exercise(
    _accuracy,
    why="A strict score is a fair one: what only looks like the category does not count.",
    hint="answer.partition(',')[0] is what stands before the comma.",
    solution="""\
def accuracy(given, wanted):
    right = [text.partition(",")[0] == category for text, category in zip(given, wanted)]
    return sum(right) / len(right)


answer = accuracy""",
)

"""Exercises: a stub that never raises, then check, hint and solution.

Each notebook has a module of its own here, with one `Exercise` a task:

    from qlora_kit.exercises import nb01

    answer = ...  # replace the dots
    nb01.parameters.check(answer)
"""

import torch


class NotTried(Exception):
    """The learner's function still returns the dots of its stub."""


class Exercise:
    """One task.

    `judge(answer)` returns None for a right answer, else a sentence that names the likely
    misconception. `why` says after a right answer why it is right. `solution` is Python code
    whose last line binds `answer`; a test runs it and checks the result.
    """

    def __init__(self, judge, why, hint, solution):
        self.judge = judge
        self.why = why
        self._hint = hint
        self._solution = solution

    def verdict(self, answer):
        """One sentence: right, not yet and why, or not tried. It never raises."""
        if answer is ...:
            return "Not tried yet: replace the dots with your answer."
        try:
            wrong = self.judge(answer)
        except NotTried:
            return "Not tried yet: replace the dots in the function."
        except Exception as error:
            reason = str(error).partition("\n")[0]
            wrong = f"checking it raised {type(error).__name__}: {reason}"
        return f"Not yet: {wrong}" if wrong else f"Right. {self.why}"

    def check(self, answer):
        print(self.verdict(answer))

    def hint(self):
        print(self._hint)

    def solution(self):
        print(self._solution)


def call(function, *arguments):
    """The result of the learner's function; raises NotTried if it is still the stub's dots."""
    if not callable(function):
        raise TypeError("a function is wanted here")
    result = function(*arguments)
    if result is ...:
        raise NotTried
    return result


def number(value):
    """A learner's result as a float; a comparison with it is False for anything odd."""
    return float(torch.as_tensor(value).item())


def close(given, right, rel=1e-6):
    """True if all numbers given are the right ones, within that relative error."""
    return all(abs(a - b) <= rel * b for a, b in zip(given, right, strict=True))

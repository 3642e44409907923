"""Sliders over pictures, and a box for a ticket of one's own, for ipywidgets 7.7 and 8: the same in
JupyterLab, VS Code and Colab.
"""

import base64
import contextlib
import gc
import html
import io

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import display

from qlora_kit.errors import KitError
from qlora_kit.figures import cards
from qlora_kit.figures.style import style


def explore(move, **controls):
    """Show a picture and a line of text that follow their controls.

    `move` returns both, a Figure and the text with the numbers that matter. It is called with the
    values of `controls`, ipywidgets controls by argument name, which is also the label of a
    control that brings none. Where no kernel runs, such as on GitHub, the first picture stands in
    the widget's place.
    """
    picture = ipywidgets.Image(format="png")
    numbers = ipywidgets.HTML()

    def update(*_):
        values = {name: control.value for name, control in controls.items()}
        with nothing_collected(), style():
            figure, words = move(**values)
            picture.value, numbers.value = png(figure), words

    update()
    for name, control in controls.items():
        control.description = control.description or name.replace("_", " ")
        control.observe(update, names="value")
    box = ipywidgets.VBox([*controls.values(), numbers, picture])
    show(box, picture.value, "A widget: run this cell to move its sliders.")


def ticket_box(ask, examples, limit=600):
    """A box for a ticket of one's own, and what each model makes of it.

    `ask` takes a list of tickets and returns for each a dict of `cards.Reading` by the models'
    names; a KitError of it is shown as a sentence. It is asked about the `examples` first: the box
    opens with one of them, and where no kernel runs, a picture of all stands in its place. A ticket
    may have `limit` characters.
    """
    answers = ask(examples)
    stored = png(cards.picture(examples, answers))
    wide = ipywidgets.Layout(width="98%", max_width="820px", height="6em")
    ticket = ipywidgets.Textarea(value=examples[0], placeholder="Write a ticket", layout=wide)
    button = ipywidgets.Button(description="Ask", button_style="primary")
    says = ipywidgets.HTML()
    table = ipywidgets.HTML(value=cards.side_by_side(answers[0]))

    def answer(_):
        text = ticket.value.strip()
        table.value = ""
        if not text:
            says.value = "The box is empty: write a ticket first."
        elif len(text) > limit:
            says.value = f"{len(text)} characters are too long; at most {limit} fit."
        else:
            button.disabled, says.value = True, "The models are answering ..."
            try:
                [readings] = ask([text])
                says.value, table.value = "", cards.side_by_side(readings)
            except KitError as error:
                says.value = html.escape(str(error))
            except (Exception, KeyboardInterrupt) as error:  # a traceback of a click is never seen
                says.value = f"No answer: {html.escape(repr(error))}."
            finally:
                button.disabled = False

    button.on_click(answer)
    box = ipywidgets.VBox([ticket, button, says, table])
    show(box, stored, "A widget: run this cell to write a ticket.")


def show(box, picture, words):
    """Display a widget, or where no kernel runs, such as on GitHub, a PNG in its place."""
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    bundle = {
        "application/vnd.jupyter.widget-view+json": view,
        "image/png": base64.b64encode(picture).decode(),
        "text/plain": words,
    }
    display(bundle, raw=True)


@contextlib.contextmanager
def nothing_collected():
    """Python's garbage collector waits.

    It walks through all that a notebook has loaded, torch and transformers too: half a second in
    which a slider would stand still.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def png(figure):
    """A Figure as bytes of a PNG, packed in haste: a tenth larger, in three quarters of the time.

    The figure is closed, so that the notebook does not show it.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", pil_kwargs={"compress_level": 1})
    plt.close(figure)
    return buffer.getvalue()

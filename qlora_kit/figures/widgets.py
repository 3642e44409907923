"""Sliders over pictures, for ipywidgets 7.7 and 8: the same in JupyterLab, VS Code and Colab."""

import base64
import contextlib
import gc
import io

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import display

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
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    bundle = {
        "application/vnd.jupyter.widget-view+json": view,
        "image/png": base64.b64encode(picture.value).decode(),
        "text/plain": "A widget: run this cell to move its sliders.",
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

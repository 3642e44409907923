"""The one exception that the kit raises on purpose. Its message says what to do."""


class KitError(Exception):
    """Something that the user can put right; shown without a traceback."""

    def _render_traceback_(self):
        """What IPython shows in a notebook in the place of a traceback."""
        return [f"KitError: {self}"]

"""The one exception that the kit raises on purpose. Its message says what to do."""


class KitError(Exception):
    """Something that the user can put right; shown on the command line without a traceback."""

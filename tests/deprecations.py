"""Deprecation warnings of the libraries that the kit teaches: in the tests they are errors.

What the kit's own code calls must be today's names, so that a learner is never told otherwise.
"""

import logging

TAUGHT = ("transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate")
# A warning counts for the module that it is said of: a library's own, or that of its caller.
MODULES = (*TAUGHT, "qlora_kit", "test_", "tiny_run")
# Not the kit's to mend: a library calls another one's old name. Each with who calls it and until
# when; tests/test_deprecations.py says when one can go.
KNOWN = {
    "`is_gradient_checkpointing` is deprecated": "peft 0.21.2, trl 1.16.0; transformers 6 ends it",
    "`gradient_checkpointing_enable` is deprecated": "peft 0.21.2; transformers 6 ends it",
    "`gradient_checkpointing` is deprecated": "trl 1.16.0 sets it; transformers 6 ends it",
}


class Handler(logging.Handler):
    """Raises where a library logs a deprecation: transformers logs many and warns of few."""

    def emit(self, record):
        message = record.getMessage()
        if "deprecated" in message and not any(known in message for known in KNOWN):
            raise DeprecationWarning(message)


def are_errors(config):
    """Make them errors for a run of pytest, whether they are warned of or logged."""
    for category in ("DeprecationWarning", "FutureWarning"):
        for module in MODULES:
            config.addinivalue_line("filterwarnings", f"error::{category}:{module}")
    for message in KNOWN:
        config.addinivalue_line("filterwarnings", f"ignore:{message}")
    for library in TAUGHT:
        logging.getLogger(library).addHandler(Handler())

"""QLoRA Kit: the helpers behind a path of notebooks from a 3x3 matrix to a fine-tuned Gemma.

Importing this package is cheap: it needs the standard library alone and loads no other module.
"""

import sys

__version__ = "0.1.0"

if sys.version_info < (3, 11):
    sys.exit(
        "QLoRA Kit needs Python 3.11 or newer; this is Python %d.%d. "
        "Install a newer one from python.org and start again with it." % sys.version_info[:2]
    )

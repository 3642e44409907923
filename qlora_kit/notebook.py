"""What every notebook needs and none is about: quiet libraries, and a link to download a folder."""

import logging
import os
import shutil
import sys
import warnings
from pathlib import Path

from IPython.display import HTML, display


def quiet():
    """Silence what a learner can do nothing about; call it before the libraries are imported.

    Real warnings of one's own settings come from Python's `warnings` and stay.
    """
    # On some processors bitsandbytes reports, when it is imported, that a faster kernel is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # A call of another library's that is to change; the notebooks call today's names.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # transformers lists the weights that it left out where a notebook asked for a part of a model.
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # a bar for some thousand short rows
    # Loading one tensor after another takes less memory.
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    import transformers  # after the lines above, which it reads when it is imported

    transformers.utils.logging.disable_progress_bar()  # a bar for every model that is loaded


def download_link(folder):
    """Zip a folder and show a link to the zip: Colab's page downloads it, Jupyter shows the link.

    The zip lies beside the folder. The link is relative to the notebook, if that is where it runs.
    """
    archive = Path(shutil.make_archive(str(folder), "zip", folder))
    print(f"{archive.name}, {archive.stat().st_size / 1e6:.1f} MB, is in {folder.parent.name}.")
    if "google.colab" in sys.modules:
        from google.colab import files

        files.download(str(archive))
    else:
        link = Path(os.path.relpath(archive)).as_posix()
        display(HTML(f'<a href="{link}" download>Download {archive.name}</a>'))

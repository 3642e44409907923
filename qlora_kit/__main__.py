"""The command line: `python3 -m qlora_kit COMMAND`. Standard library only, until a command runs."""

import argparse
import sys

from qlora_kit import bootstrap
from qlora_kit.errors import KitError


def parser():
    top = argparse.ArgumentParser(
        prog="python3 -m qlora_kit",
        description="QLoRA Kit: learn QLoRA in notebooks, and fine-tune a real model.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    examples = []

    def command(name, text, example):
        examples.append("  python3 -m qlora_kit " + example)
        return commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog="Example:" + examples[-1],
        )

    command("train", "fine-tune a model (notebook 06); print before and after", "train")

    test = command("test", "run the tests, notebooks included", "test --full")
    test.add_argument("--full", action="store_true", help="add the slow tests (up to an hour)")

    command("lab", "open JupyterLab on the notebooks", "lab")

    fetch = command("fetch", "download a model into the cache", "fetch gemma-3-270m")
    fetch.add_argument("profile", nargs="?", help="default: the one that suits this machine")

    run = command("run", "run one notebook from top to bottom", "run 06 --set seed=1")
    run.add_argument("number", metavar="NN", help="the notebook's number, such as 06")
    how = run.add_mutually_exclusive_group()
    how.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a variable of the notebook's parameters cell; may be given several times",
    )
    how.add_argument(
        "--in-place",
        action="store_true",
        help="store the outputs in the notebook itself (for maintainers)",
    )

    bench = command("bench", "time the kit's own code against bitsandbytes", "bench nf4")
    bench.add_argument("what", choices=["nf4"], help="nf4: quantise and dequantise a weight")
    bench.add_argument("--json", action="store_true", help="print one JSON object instead")

    link = command("link", "stamp the repository's address everywhere", "link OWNER/REPO")
    link.add_argument("repository", metavar="OWNER/REPO")

    top.epilog = "\n".join(
        [
            "examples:",
            *examples,
            "",
            "Where packages are missing, the first call makes a .venv in this folder.",
            "Set QLORA_KIT_PROFILE to choose a model, QLORA_KIT_CACHE to move the cache.",
        ]
    )
    return top


def main():
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")
    arguments = parser().parse_args()
    try:
        if arguments.command != "link":
            bootstrap.ensure(arguments.command)
        from qlora_kit import commands

        return getattr(commands, arguments.command)(arguments)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except (KitError, OSError) as error:
        print("qlora_kit: %s" % error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""The command line: `python3 -m qlora_kit COMMAND`. Standard library only, until a command runs."""

import argparse
import sys

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

    train = command("train", "fine-tune a model (notebook 06); print before and after", "train")
    train.add_argument(
        "--new",
        action="store_true",
        help="begin a new run; without it, one that was cut off is resumed if nothing has changed",
    )

    test = command("test", "run the tests, notebooks included", "test --full")
    test.add_argument("--full", action="store_true", help="add the slow tests (up to an hour)")

    command("lab", "open JupyterLab on the notebooks", "lab")
    command("doctor", "look at this machine: what fits, what to mend", "doctor")

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

    bench = command("bench", "time the kit against the libraries, as ratios", "bench train")
    bench.add_argument(
        "what",
        choices=["nf4", "train"],
        help="nf4: quantise and dequantise a weight; train: its recipe against the defaults",
    )
    bench.add_argument("--json", action="store_true", help="print one JSON object instead")

    budget = command(
        "budget",
        "say how much GPU memory a training step needs",
        "budget llama-2-7b --gpu T4 --batch 4 --seq 1024 --rank 16",
    )
    budget.add_argument("model", help="a profile, a hub id, or a folder with a config.json")
    budget.add_argument("--gpu", default="T4", help="a name such as T4 or A100-80, or GiB; T4")
    budget.add_argument("--batch", type=int, default=4, help="rows in a batch (default: 4)")
    budget.add_argument("--seq", type=int, default=1024, help="tokens in a row (default: 1024)")
    budget.add_argument("--rank", type=int, default=16, help="rank of the adapter (default: 16)")
    budget.add_argument("--method", default="qlora", help="qlora, lora or full (default: qlora)")
    budget.add_argument(
        "--targets", metavar="q_proj,k_proj,...", help="adapted modules (default: all linear ones)"
    )
    budget.add_argument("--no-double-quant", action="store_true", help="keep scales in float32")
    budget.add_argument(
        "--prepare-kbit",
        action="store_true",
        help="float32 embedding and stream, no autocast: the recipe for a T4",
    )
    budget.add_argument("--adapter-dtype", default="float32", help="float32 or bfloat16")
    budget.add_argument("--optimizer", default="adamw_torch", help="as in TrainingArguments")
    budget.add_argument("--no-checkpointing", action="store_true", help="keep every activation")
    budget.add_argument(
        "--loss", default="tiled", help="tiled, as SFTTrainer's, or plain: all logits at once"
    )
    budget.add_argument("--dropout", type=float, default=0.0, help="of the adapter (default: 0)")
    budget.add_argument("--attention", default="sdpa", help="sdpa or eager (default: sdpa)")
    budget.add_argument(
        "--xray", action="store_true", help="track the tensors of a fake step, instead of formulas"
    )
    budget.add_argument("--json", action="store_true", help="print one JSON object instead")

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
        from qlora_kit import bootstrap  # says so where this is no clone

        if arguments.command != "link":
            bootstrap.ensure(arguments.command)
        from qlora_kit.cli import commands

        return getattr(commands, arguments.command)(arguments)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except (KitError, OSError) as error:
        print("qlora_kit: %s" % error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

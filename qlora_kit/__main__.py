"""The command line: `python3 -m qlora_kit COMMAND`. Standard library only, until a command runs."""

import argparse
import sys

from qlora_kit.errors import KitError

# The profiles' names, to be shown before anything is installed.
MODELS = ("smollm2-135m", "gemma-3-270m", "gemma-3-1b", "gemma-3-4b", "llama-2-7b")


def parser():
    top = argparse.ArgumentParser(
        prog="python3 -m qlora_kit",
        description="QLoRA Kit: learn QLoRA in notebooks, and fine-tune a real language model.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    examples = []

    def command(name, text, *shown):
        lines = ["  python3 -m qlora_kit " + example for example in shown]
        examples.extend(lines)
        return commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog="\n".join(["examples:" if len(lines) > 1 else "example:", *lines]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def takes_profile(subparser):
        subparser.add_argument(
            "--profile",
            metavar="NAME",
            help="the model: %s (default: the one that suits this machine)" % ", ".join(MODELS),
        )

    train = command(
        "train",
        "fine-tune a model and print its scores before and after (this is notebook 06)",
        "train",
        "train --long",
        "train --profile gemma-3-270m --rank 8",
        "train --data my_tickets --categories bug,praise",
    )
    takes_profile(train)
    train.add_argument(
        "--data",
        metavar="FOLDER",
        help="your own tickets: a folder with tickets_train.jsonl, tickets_dev.jsonl and "
        "tickets_test.jsonl",
    )
    train.add_argument("--categories", metavar="a,b,...", help="the categories of your own tickets")
    train.add_argument(
        "--long",
        action="store_true",
        help="train on all tickets: about twice as long, for better answers",
    )
    train.add_argument(
        "--open-book",
        action=argparse.BooleanOptionalAction,
        help="whether a reply may rest on the policy's sentences for the facts that the model has "
        "named, or on what it has learnt by heart (default: the profile's, open)",
    )
    for option, kind, text in (
        ("--rank", int, "size of the adapter's matrices"),
        ("--alpha", int, "the adapter's output is multiplied by alpha / rank"),
        ("--learning-rate", float, "how large an update is, such as 2e-4"),
        ("--rows", int, "how many of the training tickets to use"),
        ("--epochs", int, "how often to go through them"),
    ):
        name = "N" if kind is int else "RATE"
        train.add_argument(option, type=kind, metavar=name, help=text + " (default: the profile's)")
    train.add_argument(
        "--targets", metavar="q_proj,k_proj,...", help="adapted matrices (default: all seven)"
    )
    train.add_argument(
        "--seed", type=int, metavar="N", help="fixes the random choices (default: the notebook's)"
    )
    train.add_argument(
        "--new",
        action="store_true",
        help="start afresh; otherwise an interrupted run with the same settings is resumed",
    )

    test = command("test", "run the tests, including every notebook", "test --full")
    test.add_argument("--full", action="store_true", help="add the slow tests (up to an hour)")

    command("lab", "open the notebooks in JupyterLab", "lab")
    doctor = command(
        "doctor",
        "check this machine, or a saved adapter: what will run, and what to fix",
        "doctor",
        "doctor runs/2026-01-31-120000-smollm2-135m",
    )
    takes_profile(doctor)
    doctor.add_argument(
        "folder",
        nargs="?",
        metavar="RUN_OR_FOLDER",
        help="a run's folder or that of an adapter, to be looked at instead of the machine",
    )

    fetch = command(
        "fetch", "download a model, to work without a network later", "fetch gemma-3-270m"
    )
    which = fetch.add_mutually_exclusive_group()
    takes_profile(which)
    which.add_argument("name", nargs="?", metavar="NAME", help="the same as --profile NAME")

    run = command("run", "run one notebook from top to bottom", "run 06 --set seed=1")
    run.add_argument("number", metavar="NN", help="the notebook's number, such as 06")
    takes_profile(run)
    how = run.add_mutually_exclusive_group()
    how.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting at the top of the notebook; repeat it for more than one",
    )
    how.add_argument(
        "--in-place",
        action="store_true",
        help="save the outputs in the notebook itself (for maintainers); NN may be `all`",
    )

    bench = command("bench", "compare the kit's speed with the libraries'", "bench train")
    bench.add_argument(
        "what",
        choices=["nf4", "train"],
        help="nf4: quantising and dequantising a matrix; train: the kit's recipe against the "
        "libraries' defaults",
    )
    takes_profile(bench)
    bench.add_argument("--json", action="store_true", help="print one JSON object instead")

    budget_options(
        command(
            "budget",
            "say how much GPU memory a training step needs",
            "budget llama-2-7b --gpu T4 --batch 4 --seq 1024 --rank 16",
        )
    )

    link = command("link", "write your repository's address into every link", "link OWNER/REPO")
    link.add_argument("repository", metavar="OWNER/REPO", help="its name on GitHub")

    top.epilog = "\n".join(
        [
            "examples:",
            *examples,
            "",
            "The first command installs what is missing into .venv in this folder, once.",
            "QLORA_KIT_PROFILE chooses the model for everything, QLORA_KIT_CACHE moves downloads.",
        ]
    )
    return top


def budget_options(budget):
    either = argparse.BooleanOptionalAction
    budget.add_argument("model", help="a profile, a hub id, or a folder with a config.json")
    budget.add_argument(
        "--gpu", help="a name such as T4 or A100-80, or GiB (default: the one at hand, else T4)"
    )
    budget.add_argument("--batch", type=int, default=4, help="rows in a batch (default: 4)")
    budget.add_argument("--seq", type=int, default=1024, help="tokens in a row (default: 1024)")
    budget.add_argument("--rank", type=int, default=16, help="rank of the adapter (default: 16)")
    budget.add_argument("--method", default="qlora", help="qlora, lora or full (default: qlora)")
    budget.add_argument(
        "--targets",
        metavar="q_proj,k_proj,...",
        help="adapted modules, also embed_tokens and lm_head (default: all linear ones of a layer)",
    )
    budget.add_argument("--no-double-quant", action="store_true", help="keep scales in float32")
    budget.add_argument(
        "--prepare-kbit",
        action=either,
        help="float32 embedding and residual stream, as PEFT prepares a 4-bit model; without "
        "--autocast the recipe for a T4 (default: where the GPU has no bfloat16)",
    )
    budget.add_argument(
        "--autocast",
        action=either,
        help="16-bit autocast, as fp16 or bf16 of the Trainer (default: unless --prepare-kbit)",
    )
    budget.add_argument(
        "--compute-dtype", default="bfloat16", help="of 4-bit products: float32, or 16 bits"
    )
    budget.add_argument("--adapter-dtype", default="float32", help="float32 or bfloat16")
    budget.add_argument("--optimizer", default="adamw_torch", help="as in TrainingArguments")
    budget.add_argument("--no-checkpointing", action="store_true", help="keep every activation")
    budget.add_argument(
        "--loss", default="tiled", help="tiled, as SFTTrainer's, or plain: all logits at once"
    )
    budget.add_argument(
        "--keep-outputs",
        action="store_true",
        help="the logits live on during the backward pass, as in a loop that holds the outputs",
    )
    budget.add_argument("--dropout", type=float, default=0.0, help="of the adapter (default: 0)")
    budget.add_argument("--attention", default="sdpa", help="sdpa or eager (default: sdpa)")
    budget.add_argument(
        "--ddp", action="store_true", help="one of several GPUs, each with a copy of the model"
    )
    budget.add_argument(
        "--xray", action="store_true", help="track the tensors of a fake step, instead of formulas"
    )
    budget.add_argument("--json", action="store_true", help="print one JSON object instead")


def main():
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")
    arguments = parser().parse_args()
    try:
        from qlora_kit import bootstrap  # says so where this is no clone

        if arguments.command != "link":
            bootstrap.ensure(arguments.command)
        from qlora_kit.cli import commands

        commands.choose_profile(arguments)
        return getattr(commands, arguments.command)(arguments)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except (KitError, OSError) as error:
        print("qlora_kit: %s" % error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""Train notebook 06 with several seeds and keep each report as a line of trainings.jsonl.

    .venv/bin/python data/trainings.py --seeds 0,1,2
    .venv/bin/python data/trainings.py --seeds 0,1,2 --long
    .venv/bin/python data/trainings.py --seeds 0,1,2 --closed-book

A training that has its line is not run again; one that was cut off is resumed. To train anew,
delete the line.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from qlora_kit import models  # noqa: E402
from qlora_kit.data import stored  # noqa: E402
from qlora_kit.training import runs  # noqa: E402


def train(seed, recipe, options):
    """The report of one run of `python3 -m qlora_kit train`."""
    before = set(runs.home().glob("*/report.json"))
    command = [sys.executable, "-m", "qlora_kit", "train", "--seed", str(seed), *options]
    subprocess.run(command, cwd=ROOT, check=True)
    reports = [
        json.loads(file.read_text()) for file in set(runs.home().glob("*/report.json")) - before
    ]
    [report] = [r for r in reports if (r["seed"], r["rows"]) == (seed, recipe.rows)]
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--long", action="store_true", help="the long form of the recipe")
    parser.add_argument("--closed-book", action="store_true", help="facts learnt by heart")
    arguments = parser.parse_args()
    profile = models.pick_profile()
    recipe = profile.long if arguments.long else profile.recipe
    options = ["--long"] * arguments.long + ["--no-open-book"] * arguments.closed_book
    kept = stored.trainings(profile.name, not arguments.closed_book, recipe.rows)
    for seed in map(int, arguments.seeds.split(",")):
        if any(report["seed"] == seed for report in kept):
            print(f"{profile.name}, {recipe.rows} rows, seed {seed}: stored already.")
            continue
        report = train(seed, recipe, options)
        with open(stored.TRAININGS, "a", encoding="utf-8") as file:
            file.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()

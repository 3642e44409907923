"""Results that a small machine cannot compute: measured where it can, else read from data/."""

import json
import os

from qlora_kit.paths import DATA

TRAININGS = DATA / "trainings.jsonl"


def measured(name, key, measure, possible):
    """`measure()` if `possible`, else what data/<name>.json holds under `key`.

    The file is written by a real run with QLORA_KIT_STORE=1, and by nothing else. Both ways the
    result has gone through JSON, so that it has the same types.
    """
    file = DATA / f"{name}.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if possible:
        results[key] = json.loads(json.dumps(measure()))
        if os.environ.get("QLORA_KIT_STORE") == "1":
            file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results[key]


def trainings(profile, open_book, rows=None):
    """The reports of stored trainings of a profile by notebook 06, with an open or a closed book,
    on `rows` tickets or on any number: a list of dictionaries, the fewest rows first.
    data/trainings.py makes them.
    """
    lines = TRAININGS.read_text(encoding="utf-8").splitlines() if TRAININGS.exists() else []
    wanted = [
        report
        for report in map(json.loads, lines)
        if report["profile"] == profile
        and report["settings"]["open_book"] == open_book
        and rows in (None, report["rows"])
    ]
    return sorted(wanted, key=lambda report: (report["rows"], report["seed"]))

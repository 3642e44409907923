"""Results that a small machine cannot compute: measured where it can, else read from data/."""

import json
import os

from qlora_kit.paths import DATA


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

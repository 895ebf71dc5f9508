"""How fixtures are written."""

import json
import re

NUMBERS = re.compile(r"\[\s+(-?\d[^\[\]\"{}]*?)\s+\]")


def write_json(path, value):
    """Indented, but lists of numbers on one line."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(NUMBERS.sub(lambda match: "[" + re.sub(r"\s+", " ", match[1]) + "]", text) + "\n")

"""Keeps what the scripts that make the README's tables have measured: one JSON file each, a row a name."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_vit_family.files import write_text


def results(path: Path) -> dict[str, dict[str, Any]]:
    """Reads what was measured so far: name to its row."""
    return json.loads(path.read_text()) if path.exists() else {}


def keep(path: Path, order: Iterable[str], name: str, **measured: Any) -> None:
    """Adds what was measured to the row of a name. The file is read again first: other runs may have written."""
    known = results(path)
    known[name] = {**known.get(name, {}), **measured}
    write_text(path, json.dumps({each: known[each] for each in order if each in known}, indent=2) + "\n")

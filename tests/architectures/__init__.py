"""`DOSSIERS`: the dossier of every architecture of the registry, by name and in its order."""

import importlib
from pathlib import Path

from dossier import Dossier

from hf_vit_family import ARCHITECTURES

FOLDER = Path(__file__).parent


def collect() -> dict[str, Dossier]:
    """
    Imports the dossiers.

    Raises:
        LookupError: A dossier is missing, is that of no architecture, or has a misnamed case. It says what to write.
    """
    found = {file.stem for file in FOLDER.glob("*.py")} - {"__init__"}
    for name in ARCHITECTURES:
        if name not in found:
            raise LookupError(
                f"the architecture {name!r} has no dossier: write tests/architectures/{name}.py with "
                f"DOSSIER = Dossier(tiny={{{name!r}: ...}}, initialisation={{{name!r}: ...}}, parity=...); "
                "tests/dossier.py explains the fields"
            )
    for name in sorted(found - ARCHITECTURES.keys()):
        raise LookupError(f"tests/architectures/{name}.py is the dossier of no architecture of the registry")
    dossiers = {name: importlib.import_module(f"{__name__}.{name}").DOSSIER for name in ARCHITECTURES}
    for name, dossier in dossiers.items():
        for table in ("tiny", "initialisation"):
            cases = getattr(dossier, table)
            wrong = [case for case in cases if case.partition("-")[0] != name]
            if wrong or name not in cases:
                raise LookupError(
                    f"tests/architectures/{name}.py: {table} needs the case {name!r}, and names its other cases "
                    f"'{name}-<option>', not {wrong}"
                )
    return dossiers


DOSSIERS = collect()

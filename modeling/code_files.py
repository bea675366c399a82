"""Keeps a published repository whole: whatever names code in an `auto_map` is saved together with that code.

transformers itself copies code only for objects that were loaded from it, and keeps an `auto_map` in any case: a
registered model that is loaded from the Hub and saved again would name files that are not there (transformers 5.23).
"""

import shutil
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files


def write_code(auto_map: dict, folder: str | Path) -> dict:
    """
    Copies the code that an `auto_map` names, and what it imports, from this file's directory to a folder.

    Args:
        auto_map: Auto class to `"module.Class"`, or to such a reference for each backend of a processor.
        folder: An existing folder.

    Returns:
        The `auto_map` without the entries whose code is neither here nor in the folder already. (A configuration that
        was loaded on its own has no modeling code next to it.)
    """
    here, folder = Path(__file__).parent, Path(folder)

    def is_there(reference: str) -> bool:
        name = reference.split(".")[0] + ".py"
        if (here / name).is_file():
            for source in {here / name, *map(Path, get_relative_import_files(here / name))}:
                partial = folder / f".{source.name}.partial"
                shutil.copyfile(source, partial)
                partial.replace(folder / source.name)
        return "--" in reference or (folder / name).is_file()  # "owner/name--module.Class" lies in that repository

    kept = {}
    for auto_class, entry in auto_map.items():
        if isinstance(entry, dict):
            entry = {backend: reference for backend, reference in entry.items() if is_there(reference)}
        elif not is_there(entry):
            continue
        if entry:
            kept[auto_class] = entry
    return kept


class CodeFilesMixin:
    """
    For configurations and processors: where there is an `auto_map`, saving writes the code that it names.

    The hook is `to_json_file`, because `save_pretrained(..., push_to_hub=True)` uploads what was written after it
    began.
    """

    def to_json_file(self, json_file_path: str | Path, *args, **kwargs) -> None:
        """Writes the JSON file, and next to it the code that its `auto_map` names."""
        auto_map = getattr(self, "auto_map", None)
        if not auto_map:
            super().to_json_file(json_file_path, *args, **kwargs)
            return
        self.auto_map = write_code(auto_map, Path(json_file_path).parent)
        try:
            super().to_json_file(json_file_path, *args, **kwargs)
        finally:
            self.auto_map = auto_map

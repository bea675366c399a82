"""The published checkpoints: one table for each architecture, `conversion_scripts/checkpoints/<architecture>.toml`.

A table is a list of groups. What a group says holds for each of its files, unless the file says otherwise:

    [texts]
    readme = "README of owner/name@1234567"

    [[group]]
    url = "https://example.org/{file}.pth"
    top1_source = "{readme}"
    license = "mit"
    files = [
        { name = "vit_base_patch16_224.tag", file = "vit_b", top1 = 81.2 },
    ]

The keys are the fields of [`Published`]. A name in braces stands for a text of `[texts]`, or for what the file says
under that key; `{variant}` is its name up to the dot.
"""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Published:
    """
    One published checkpoint. Its name is `"<variant>.<tag>"`.

    Args:
        url: The file. A fragment (`#/name.pth`) is no part of the request: it tells the name of the file.
        top1: Top-1 accuracy on ImageNet-1k in percent, as published; `None` where nobody published one.
        top1_source: Who measured it. training: Data it was trained on.
        license: Licence of the weights as a Hub identifier, `None` where it is unknown. license_source: Who says so.
        wrapper: Key under which the file keeps its state dict, `""` for none.
        preprocessing: What differs from the variant's, by the names of `VitfConfig.preprocessing`.
    """

    url: str
    top1: float | None = None
    top1_source: str = ""
    training: str = ""
    license: str | None = None
    license_source: str = ""
    wrapper: str = ""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


_FIELDS = [field.name for field in fields(Published)]


def _read_file(entry: Mapping[str, Any], texts: Mapping[str, str]) -> Published:
    said = {name: entry[name] for name in _FIELDS if name in entry}
    own = {name: entry[name] for name in entry.keys() - _FIELDS}
    words = {**texts, "variant": entry["name"].partition(".")[0], **own}
    if "top1" not in said:
        said.pop("top1_source", None)
    filled = {name: value.format_map(words) if isinstance(value, str) else value for name, value in said.items()}
    if unused := [name for name in own if name != "name" and f"{{{name}}}" not in "".join(map(str, said.values()))]:
        raise ValueError(f"checkpoint {entry['name']!r}: no field and no place for {', '.join(unused)}")
    return Published(**filled)


def read_published(table: str) -> dict[str, Published]:
    """
    The checkpoints of a table, by name.

    Args:
        table: Its text, as above.

    Raises:
        ValueError: if it is no TOML, a name occurs twice, or a key is neither a field nor the place of a text.
    """
    content = tomllib.loads(table)
    found: dict[str, Published] = {}
    for group in content["group"]:
        shared = {name: value for name, value in group.items() if name != "files"}
        for file in group["files"]:
            if file["name"] in found:
                raise ValueError(f"checkpoint {file['name']!r} occurs twice")
            found[file["name"]] = _read_file({**shared, **file}, content.get("texts", {}))
    return found


@functools.cache
def published_checkpoints(architecture: str) -> Mapping[str, Published]:
    """The published checkpoints of an architecture, by name; none where it has no table."""
    folder = resources.files(__package__.rpartition(".")[0] + ".conversion_scripts") / "checkpoints"
    table = folder / f"{architecture}.toml"
    return read_published(table.read_text(encoding="utf-8")) if table.is_file() else {}

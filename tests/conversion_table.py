"""
The table of docs/conversion.md: what converts from where, by trying it. `python tests/conversion_table.py` writes it.
"""

import functools
from dataclasses import fields
from pathlib import Path

import torch
from models import TINY, architecture_of, classification_head, tiny_config, tiny_model
from transformers import PreTrainedConfig

from hf_vit_family import ARCHITECTURES
from hf_vit_family.conversion.convert import (
    TIMM_REPOSITORY,
    ConversionError,
    Layout,
    convert_checkpoint,
    export_checkpoint,
)
from hf_vit_family.conversion.transformers_source import REFUSED_NAMES
from hf_vit_family.conversion_scripts.timm_variants import OTHER_FAMILIES
from hf_vit_family.registry import Architecture

DOCUMENT = Path(__file__).parents[1] / "docs" / "conversion.md"
BEGIN, END = "<!-- made by tests/conversion_table.py -->", "<!-- end -->"
# What the names of layouts begin with, to the library; other layouts have a column of their own name.
LIBRARIES = {
    "original": "the authors",
    "mae": "the authors",
    "timm": "timm",
    "transformers": "transformers",
    "vit_pytorch": "vit-pytorch",
}
# How models compute that are read from other libraries: the fields for which an authors' file may need another value.
_THEIRS = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "conv_norm_eps": 1e-6}
# Libraries whose code is that of an architecture's authors.
REPOSITORIES = {TIMM_REPOSITORY: "timm", "lucidrains/vit-pytorch": "vit-pytorch"}
# Libraries that read a config.json next to the weights.
WITH_CONFIG = ("timm", "transformers")


def library_of(architecture: Architecture, layout: str) -> str:
    """The column of an architecture's layout."""
    conversion = architecture.conversion
    if (repository := (conversion.LAYOUTS[layout].source or conversion.SOURCE).repository) in REPOSITORIES:
        return REPOSITORIES[repository]
    found = (name for start, name in LIBRARIES.items() if layout == start or layout.startswith(start + "_"))
    return next(found, layout.partition("_")[0])


def _comes_back(case: str, name: str, layout: Layout) -> bool:
    """Whether a tiny model is written in a layout, and read from it bit for bit; one that needs a decoder has one."""
    decodes = any("decoder" in key for key in layout.requires)
    model = tiny_model(case, "ForPreTraining" if decodes else classification_head(case))
    if layout.unwritable(model.config) is not None:
        return False
    exported = export_checkpoint(model, name)
    general = {each.name for each in fields(PreTrainedConfig)}
    own = {each.name for each in fields(model.config)} - general
    told = {each: getattr(model.config, each) for each in own if not each.startswith("_")}
    told["num_labels"] = model.config.num_labels
    kwargs = (
        {key: value for key, value in told.items() if key != "num_labels"} if name.startswith("transformers") else {}
    )
    again, _ = convert_checkpoint(exported, architecture_of(case).name, kwargs, name, **told)
    state = again.state_dict()
    return all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())


def _has_config(architecture: Architecture, layout: Layout) -> bool:
    """
    Whether the layout's own library can be told to build a tiny model or a published variant, as they are, or with the
    activation and the epsilons that a model which was read from that library has.
    """
    if layout.native_config is None:
        return False
    cases = [case for case in TINY if architecture_of(case) is architecture]
    for changes in ({}, _THEIRS):
        changes = {name: value for name, value in changes.items() if hasattr(tiny_config(cases[0]), name)}
        with torch.device("meta"):
            variants = list(architecture.config_class.VARIANTS)[:3]
            configs = [architecture.config_class.from_variant(name, **changes) for name in variants]
            published = [architecture.model_class(classification_head(cases[0]))(config) for config in configs]
        for model in (*(tiny_model(case, classification_head(case), **changes) for case in cases), *published):
            try:
                layout.native_config(model)
            except ConversionError:
                continue
            return True
    return False


@functools.cache
def cell(architecture: str, library: str) -> str:
    """Finds what goes between an architecture and a library, as the table says it."""
    found = ARCHITECTURES[architecture]
    layouts = {name: each for name, each in found.conversion.LAYOUTS.items() if library_of(found, name) == library}
    if not layouts:
        return ""
    cases = [case for case in TINY if architecture_of(case) is found]
    written = [name for name, each in layouts.items() if any(_comes_back(case, name, each) for case in cases)]
    if not written:
        return "in only"
    from_config = library in WITH_CONFIG and not any(name.startswith("original") for name in written)
    if from_config and not any(_has_config(found, layouts[name]) for name in written):
        return "both ways, the weights only"
    return "both ways"


def _sources(architecture: Architecture) -> str:
    conversion = architecture.conversion
    originals = (
        each
        for name, each in conversion.LAYOUTS.items()
        if name.startswith("original") or library_of(architecture, name) == LIBRARIES["original"]
    )
    return ", ".join(dict.fromkeys((each.source or conversion.SOURCE).repository for each in originals))


def table() -> str:
    """
    One row an architecture of the registry and one column a library, in Markdown; then what is refused by its name.
    """
    names = {library_of(each, name) for each in ARCHITECTURES.values() for name in each.conversion.LAYOUTS}
    libraries = [
        *(name for name in dict.fromkeys(LIBRARIES.values()) if name in names),
        *sorted(names - {*LIBRARIES.values()}),
    ]
    rows = ["| Architecture | " + " | ".join(libraries) + " | The authors' code |", "|---" * (len(libraries) + 2) + "|"]
    for name, architecture in ARCHITECTURES.items():
        cells = [cell(name, library) or "-" for library in libraries]
        rows.append("| " + " | ".join([f"`{name}`", *cells, _sources(architecture)]) + " |")
    timm = ", ".join(dict.fromkeys(family for _, family in OTHER_FAMILIES))
    classes = [f"- transformers' `{name}`: {reason}." for name, reason in REFUSED_NAMES.items()]
    refused = [
        "Refused by its own name, whatever its keys look like:",
        "",
        f"- of timm: {timm}.",
        "- of transformers: every `model_type` that no layout is for.",
        *classes,
    ]
    return "\n".join([*rows, "", *refused])


def with_table(text: str) -> str:
    """The document's text with the table of now between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")

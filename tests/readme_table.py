"""
The README's tables, made from the registry and from what was measured. `python tests/readme_table.py` writes them.
"""

import json
import re
from pathlib import Path

import cifar10_table
import speed_table
from architectures import DOSSIERS

from hf_vit_family import ARCHITECTURES
from hf_vit_family.benchmark.timing import OURS
from hf_vit_family.registry import Architecture

TESTS = Path(__file__).parent
README = TESTS.parent / "README.md"
COUNTS = json.loads((TESTS / "parameter_counts.json").read_text())


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} M"


def _row(architecture: Architecture) -> str:
    name = architecture.name
    arxiv = re.search(r"arXiv (\d{4}\.\d{5})", architecture.paper)
    paper = f"[arXiv {arxiv[1]}](https://arxiv.org/abs/{arxiv[1]})"
    source = architecture.conversion.SOURCE
    counts = sorted(COUNTS[name].values())
    sizes = f"{len(counts)}: {_millions(counts[0])} to {_millions(counts[-1])}" if counts else "none published"
    model = f"[`{architecture.prefix}`](modeling/modeling_{name}.py)"
    code = f"[{source.repository}](https://github.com/{source.repository})"
    return f"| {model} | {paper} | {architecture.difference} | {code} | {sizes} | {DOSSIERS[name].parity:.0e} |"


def architectures() -> str:
    """One row an architecture of the registry, in Markdown."""
    head = "| Model | Paper | What differs from ViT | Original code | Variants, parameters | Parity |"
    return "\n".join([head, "|---|---|---|---|---|---|", *map(_row, ARCHITECTURES.values())])


def cifar10() -> str:
    """One row a small model that was trained for two epochs of CIFAR-10, in Markdown."""
    head = "| Architecture | Parameters | Images/s | Accuracy | Command |"
    rows = [
        f"| {name} | {_millions(row['parameters'])} | {row['images_per_second']} | {row['accuracy']:.1%} | "
        f"`{row['command']}` |"
        for name, row in cifar10_table.results().items()
        if {"accuracy", "images_per_second"} <= row.keys()
    ]
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def speed() -> str:
    """One row a variant and another library that has the same model, in Markdown."""
    head = "| Variant | Library | Forward pass | Training step | MiB, forward | MiB, training |"
    rows = []
    for variant, modes in speed_table.results().items():
        for library in speed_table.VARIANTS[variant]:
            sides = [(modes[mode][OURS], modes[mode][library]) for mode in speed_table.MODES]
            ratios = ["{1:.2f} ({0:.2f} to {2:.2f})".format(*theirs["ratio"]) for _, theirs in sides]
            memory = [f"{ours['memory']} / {theirs['memory']}" for ours, theirs in sides]
            rows.append("| " + " | ".join([f"`{variant}`", library, *ratios, *memory]) + " |")
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


# What the README calls a table to what makes it.
TABLES = {"architectures": architectures, "cifar10": cifar10, "speed": speed}


def with_tables(text: str) -> str:
    """The README's text with the tables of now, each between its two marks."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}: made by tests/readme_table.py -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")

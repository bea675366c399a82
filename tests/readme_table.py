"""The table of architectures in the README, made from the registry. `python tests/readme_table.py` writes it into place."""

import json
import re
from pathlib import Path

from hf_vit_family import ARCHITECTURES
from hf_vit_family.registry import Architecture

TESTS = Path(__file__).parent
README = TESTS.parent / "README.md"
BEGIN, END = "<!-- architectures: made by tests/readme_table.py -->", "<!-- end of architectures -->"
COUNTS = json.loads((TESTS / "parameter_counts.json").read_text())
# Architecture to a bound on the relative float64 difference to the original over all golden cases; see test_goldens.py.
PARITY = json.loads((TESTS / "parity.json").read_text())


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
    return f"| {model} | {paper} | {architecture.difference} | {code} | {sizes} | {PARITY[name]:.0e} |"


def table() -> str:
    """The Markdown table, one row an architecture of the registry."""
    head = "| Model | Paper | What differs from ViT | Original code | Variants, parameters | Parity |"
    return "\n".join([head, "|---|---|---|---|---|---|", *map(_row, ARCHITECTURES.values())])


def with_table(text: str) -> str:
    """The README's text with the table of now between its two marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")

"""docs/conversion.md says what the registry and the conversion scripts do."""

import conversion_table

from hf_vit_family import ARCHITECTURES


def test_the_table_of_conversions_is_that_of_now():
    text = conversion_table.DOCUMENT.read_text(encoding="utf-8")
    assert conversion_table.with_table(text) == text, "run: python tests/conversion_table.py"


def test_every_layout_has_a_column():
    text = conversion_table.DOCUMENT.read_text(encoding="utf-8")
    head = next(line for line in text.splitlines() if line.startswith("| Architecture |"))
    for architecture in ARCHITECTURES.values():
        for name in architecture.conversion.LAYOUTS:
            assert f"| {conversion_table.library_of(architecture, name)} |" in head, (architecture.name, name)

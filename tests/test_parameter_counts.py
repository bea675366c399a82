"""
Exact parameter counts of every published variant, counted in the original code (see the conversion scripts' SOURCE).
"""

import json
from pathlib import Path

import pytest
import torch

from hf_vit_family import ARCHITECTURES, create_model
from hf_vit_family.conversion.published import published_checkpoints, read_published

COUNTS = json.loads(Path(__file__).with_name("parameter_counts.json").read_text())
VARIANTS = [(name, variant) for name, counts in COUNTS.items() for variant in counts]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_variant_is_counted_and_every_count_has_its_variant(name):
    variants = ARCHITECTURES[name].config_class.VARIANTS
    assert COUNTS.get(name, {}).keys() == variants.keys()


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_parameter_count_is_exact(name, variant):
    with torch.device("meta"):
        model = create_model(variant)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name][variant]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_published_checkpoint_names_a_variant_and_its_source(name):
    for key, published in published_checkpoints(name).items():
        assert key.split(".")[0] in ARCHITECTURES[name].config_class.VARIANTS
        assert published.url.startswith("https://")
        assert published.top1 is None or published.top1_source


def test_every_table_of_checkpoints_belongs_to_an_architecture():
    folder = Path(__file__).parents[1] / "conversion_scripts" / "checkpoints"
    assert {table.stem for table in folder.iterdir()} <= ARCHITECTURES.keys()
    assert sum(len(published_checkpoints(name)) for name in ARCHITECTURES) > 250


def test_a_file_takes_what_its_group_says():
    table = """
    [texts]
    readme = "README of owner/name"
    [[group]]
    url = "https://example.org/{variant}/{file}.pth"
    top1_source = "{readme}"
    license = "mit"
    files = [
        { name = "vit_a.tag", file = "a", top1 = 81.2 },
        { name = "vit_b.tag", file = "b", license = "apache-2.0" },
    ]
    """
    first, second = read_published(table).values()
    assert (first.url, first.top1, first.top1_source) == (
        "https://example.org/vit_a/a.pth",
        81.2,
        "README of owner/name",
    )
    assert (second.license, second.top1, second.top1_source) == ("apache-2.0", None, "")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('{ name = "a.b" }, { name = "a.b" }', "'a.b' occurs twice"),
        ('{ name = "a.b", licence = "mit" }', "'a.b': no field and no place for licence"),
    ],
)
def test_a_mistake_in_a_table_is_named(entry, message):
    with pytest.raises(ValueError, match=message):
        read_published(f'[[group]]\nurl = "https://example.org/a"\nfiles = [{entry}]')

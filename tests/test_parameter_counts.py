"""Exact parameter counts of every published variant, counted in the original code (see the conversion scripts' SOURCE)."""

import json
from pathlib import Path

import pytest
import torch

from hf_vit_family import ARCHITECTURES, create_model

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
    for key, published in ARCHITECTURES[name].conversion.CHECKPOINTS.items():
        assert key.split(".")[0] in ARCHITECTURES[name].config_class.VARIANTS
        assert published.url.startswith("https://")
        assert published.top1 is None or published.top1_source

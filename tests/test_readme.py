"""The README says what is: its table follows the registry, its parity is measured, its commands are valid."""

import argparse
import importlib
import re
import shlex

import cifar10_table
import golden
import pytest
import readme_table
import torch
from architectures import DOSSIERS
from test_goldens import ARCHITECTURE, convert, pixels
from vit_family_launcher import COMMANDS

from hf_vit_family import ARCHITECTURES
from hf_vit_family.training.recipes import RECIPES, read_recipe

TEXT = readme_table.README.read_text(encoding="utf-8")
SHOWN = sorted(set(re.findall(r"^(?:\$ |\| `)?(vit-family [^`|\n]+)", TEXT, re.MULTILINE)))


def test_tables_are_those_of_the_registry_and_of_what_was_measured():
    assert readme_table.with_tables(TEXT) == TEXT, "run: python tests/readme_table.py"


@pytest.mark.parametrize("name", [name for name, row in cifar10_table.results().items() if "accuracy" in row])
def test_commands_of_the_cifar10_table_build_its_models(name):
    """The table's sizes are those of the models that its commands describe."""
    measured = cifar10_table.results()[name]
    assert measured["command"] == shlex.join(cifar10_table.command(name))
    assert measured["parameters"] == sum(p.numel() for p in cifar10_table.create(name).parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parity_is_what_the_golden_cases_give(name):
    differences = []
    for folder in (folder for folder, architecture in ARCHITECTURE.items() if architecture == name):
        for case in map(lambda case, folder=folder: golden.load(folder, case), golden.cases(folder)):
            model, _ = convert(case)
            with torch.no_grad():
                logits = model.double()(pixels(case).double()).logits
            differences.append(case.compare("logits", logits))
    # Another processor rounds differently; a mistake is a million times larger.
    assert max(differences) < 50 * DOSSIERS[name].parity


@pytest.mark.parametrize("command", SHOWN)
def test_commands_of_the_readme_are_valid(command):
    _, name, *words = shlex.split(command)
    assert name in COMMANDS
    module = importlib.import_module(f"hf_vit_family.commands.{name}")
    parser = argparse.ArgumentParser(exit_on_error=False)
    module.add_arguments(parser)
    options = parser.parse_args(words)
    if recipe := getattr(options, "recipe", None):
        assert read_recipe(recipe)


def test_readme_shows_commands_and_every_measured_recipe():
    assert len(SHOWN) >= 10
    for recipe in RECIPES.values():
        if recipe.measured is not None:
            assert f"--recipe {recipe.name}" in TEXT, recipe.name

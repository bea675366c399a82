"""The repository checks its own rules."""

import ast
import configparser
import importlib
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports
from vit_family_launcher import COMMANDS

from hf_vit_family import ARCHITECTURES

ROOT = Path(__file__).parents[1]
MODELING = sorted((ROOT / "modeling").glob("*.py"))
FOLDERS = ("hf_vit_family", "modeling", "conversion_scripts", "tests")
CODE = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
TEXTS = [
    *CODE,
    *sorted(file for file in ROOT.iterdir() if file.suffix in (".md", ".cfg", ".toml") or file.name == "Makefile"),
]

# What may be imported in modeling/: a published checkpoint loads with nothing else installed.
ALLOWED = {"torch", "transformers", "huggingface_hub"}
ALLOWED_IN_PROCESSORS = ALLOWED | {"torchvision", "PIL", "numpy"}
# Modules of modeling/ and conversion_scripts/ that belong to the family, not to one architecture.
SHARED = {"vitf", "pil_vitf"}

by_name = pytest.mark.parametrize("file", MODELING, ids=lambda file: file.name)


@by_name
def test_imports_of_modeling(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    relative = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"line {node.lineno}: from {'.' * node.level}..."
            assert node.module, f"line {node.lineno}: from . import ..."
            assert "." not in node.module, f"line {node.lineno}: from .{node.module}"
            assert (file.parent / f"{node.module}.py").is_file(), f"line {node.lineno}: .{node.module} does not exist"
            relative.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            assert node.module != "__future__", "strict configurations read annotations at run time"
    # The loader reads text, not syntax: an import inside a docstring would count.
    assert set(get_relative_imports(file)) == relative
    allowed = ALLOWED_IN_PROCESSORS if "processing" in file.name else ALLOWED
    assert set(get_imports(file)) - set(sys.stdlib_module_names) <= allowed


@by_name
def test_modeling_never_tests_the_class_of_a_configuration(file):
    """Loaded from a local folder, configuration and model come from two copies of the same file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            subject, classes = ast.unparse(node.args[0]), ast.unparse(node.args[1])
            assert not subject.endswith("config"), f"line {node.lineno}"
            assert "Config" not in classes, f"line {node.lineno}"


@pytest.mark.parametrize(
    ("folder", "kind"),
    [("modeling", "configuration"), ("modeling", "modeling"), ("conversion_scripts", "convert")],
)
def test_registry_is_complete(folder, kind):
    files = {file.stem.removeprefix(f"{kind}_") for file in (ROOT / folder).glob(f"{kind}_*.py")}
    assert files - SHARED == set(ARCHITECTURES)


def test_registry_names_match_the_code():
    for name, architecture in ARCHITECTURES.items():
        assert architecture.name == name
        assert architecture.config_class.model_type == architecture.model_type
        module = importlib.import_module(f"hf_vit_family.modeling.modeling_{name}")
        classes = {
            cls.removeprefix(architecture.prefix) for cls in module.__all__ if cls.startswith(architecture.prefix)
        }
        assert classes - {"PreTrainedModel"} == set(architecture.heads)
        for head in architecture.heads:
            assert architecture.model_class(head).config_class is architecture.config_class


def test_variant_names_are_unique():
    names = Counter(name for architecture in ARCHITECTURES.values() for name in architecture.config_class.VARIANTS)
    assert {name for name, count in names.items() if count > 1} == set()


def test_every_command_has_a_module():
    modules = {file.stem for file in (ROOT / "hf_vit_family" / "commands").glob("*.py")} - {"__init__"}
    commands = set()
    for name in modules:
        module = importlib.import_module(f"hf_vit_family.commands.{name}")
        if hasattr(module, "run"):
            assert module.__doc__, name
            assert "examples:" in module.__doc__, name
            assert callable(module.add_arguments), name
            commands.add(name)
    assert commands == set(COMMANDS)


def test_packages_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    packages = setup["options"]["packages"].split()
    mapped = dict(re.split(r"\s*=\s*", line) for line in setup["options"]["package_dir"].strip().splitlines())
    folders = set()
    for package in packages:
        parent, _, child = package.rpartition(".")
        folder = ROOT / (mapped[package] if package in mapped else f"{mapped[parent]}/{child}")
        assert (folder / "__init__.py").is_file(), package
        folders.add(folder)
    for file in CODE:
        if ROOT / "tests" not in file.parents:
            assert file.parent in folders, f"{file.relative_to(ROOT)} is in no package"


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_leftovers(file):
    if file == Path(__file__):
        return
    text = file.read_text(encoding="utf-8")
    paths = re.findall(r"(?<![\w./~])/(?:work|root|home|tmp|Users)/\S*", text)
    assert not paths, "paths of a machine"
    marks = re.findall(r"\b(?:TODO|FIXME|XXX)\b|pytest\.skip|mark\.skip|mark\.xfail|importorskip", text)
    assert not marks, "unfinished work or tests that do not run"

"""The repository checks its own rules."""

import ast
import configparser
import dataclasses
import importlib
import re
import sys
import typing
from collections import Counter
from pathlib import Path

import architectures
import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports
from vit_family_launcher import COMMANDS

from hf_vit_family import ARCHITECTURES
from hf_vit_family.training.config import READ_BY, ObjectiveOptions

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
    allowed = ALLOWED_IN_PROCESSORS if {"processing", "reading"} & set(file.stem.split("_")) else ALLOWED
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


# The rooms of the package from below to above: each imports of its own step and of those below it only. "" is the top
# folder, which has what users import and the tables.
STEPS = (
    ("modeling",),
    ("",),
    ("conversion", "conversion_scripts", "data"),
    ("training", "evaluation", "explain", "publishing", "benchmark"),
    ("commands",),
)
STEP = {room: step for step, rooms in enumerate(STEPS) for room in rooms}
PACKAGE = [file for file in CODE if ROOT / "tests" not in file.parents and "launcher" not in file.parts]


def imported_rooms(file: Path) -> set[str]:
    """The rooms that a file of the package imports of, wherever in the file it does."""
    inside = file.relative_to(ROOT).with_suffix("").parts
    package = ["hf_vit_family", *(inside[1:-1] if inside[0] == "hf_vit_family" else inside[:-1])]
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) + 1 - node.level] if node.level else []
        module = [*base, *(node.module.split(".") if node.module else [])]
        for name in [alias.name for alias in node.names]:
            path = [*module, name]
            if path[0] == "hf_vit_family":
                rooms.add(path[1] if path[1] in STEP else "")
    return rooms


@pytest.mark.parametrize("file", PACKAGE, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_import_goes_upward(file):
    if file == ROOT / "hf_vit_family" / "__init__.py":  # what users import is from everywhere
        return
    inside = file.relative_to(ROOT).parts
    room = inside[0] if inside[0] in STEP else inside[1] if len(inside) > 2 else ""
    above = {name for name in imported_rooms(file) if STEP[name] > STEP[room]}
    assert not above, f"{room or 'the top folder'} imports of {sorted(above)}"


def test_the_top_folder_has_what_users_import_and_the_tables():
    assert len(list((ROOT / "hf_vit_family").glob("*.py"))) <= 12


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
        parent, below = package, ""
        while parent not in mapped:
            parent, _, child = parent.rpartition(".")
            below = f"/{child}{below}"
        folder = ROOT / f"{mapped[parent]}{below}"
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


@pytest.mark.parametrize(
    ("registry", "message"),
    [
        (
            lambda known: {**known, "another": None},
            r"'another' has no dossier: write tests/architectures/another\.py",
        ),
        (
            lambda known: {name: known[name] for name in known if name != "swin"},
            r"swin\.py is the dossier of no architecture",
        ),
    ],
    ids=["missing", "of none"],
)
def test_dossiers_and_registry_belong_together(registry, message, monkeypatch):
    monkeypatch.setattr(architectures, "ARCHITECTURES", registry(ARCHITECTURES))
    with pytest.raises(LookupError, match=message):
        architectures.collect()


@pytest.mark.parametrize("table", ["tiny", "initialisation"])
@pytest.mark.parametrize(
    "cases", [{"deit-plain": {}}, {"deit": {}, "deit3": {}}], ids=["no plain case", "misnamed case"]
)
def test_cases_bear_the_name_of_their_architecture(table, cases, monkeypatch):
    dossier = dataclasses.replace(architectures.DOSSIERS["deit"], **{table: cases})
    monkeypatch.setattr(architectures.deit, "DOSSIER", dossier)
    with pytest.raises(LookupError, match=f"deit.py: {table} needs the case 'deit'"):
        architectures.collect()


def test_every_option_of_an_objective_has_its_readers():
    """Options of all objectives, and those of labels, which `check_options` knows, are in no table."""
    named = {option.name for option in dataclasses.fields(ObjectiveOptions)}
    general = {"objective", "loss", "label_smoothing", "teacher"}
    assert READ_BY.keys() == named - general
    known = typing.get_args(typing.get_type_hints(ObjectiveOptions)["objective"])
    assert {name for names in READ_BY.values() for name in names} == set(known)

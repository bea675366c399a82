"""
What the disk or the system refuses is one line and exit code 2; a fault of the library shows its traceback on demand.
"""

import ast
import json
import pickle
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors import SafetensorError
from test_publish import TRAINING, save_tiny
from test_training import forget_accelerate  # noqa: F401 - a fixture that applies to all tests
from training_runs import TINY_RUN
from vit_family_launcher import main

import hf_vit_family
from hf_vit_family.commands import info, publish
from hf_vit_family.errors import UserError
from hf_vit_family.explain.plots import plot_curves
from hf_vit_family.files import write_text
from hf_vit_family.publishing.publish import Verification

LONG = "x" * 300


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny("deit", tmp_path_factory.mktemp("model") / "source")


@pytest.fixture
def small_disk():
    """Files of more than a few hundred bytes cannot be written, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refused(argv: list, capsys) -> str:
    """The only line that a command says of an error."""
    assert main([str(word) for word in argv]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vit-family")]
    assert len(error) == 1
    return error[0]


@pytest.mark.parametrize(
    "argv",
    [
        ["convert", "{model}", "--to", "original", "--output", "{out}"],
        ["convert", "{model}", "--to", "transformers", "--output", "{out}"],
        ["publish", "{model}", "someone/model", "--dry-run", "--stage", "{out}"],
        ["attend", "{image}", "--model", "{model}", "--output", "{out}.png"],
    ],
    ids=["convert to .pth", "convert to .safetensors", "publish", "attend"],
)
def test_a_full_disk_is_named_and_leaves_nothing(argv, model, tmp_path, capsys, request):
    Image.new("RGB", (40, 40)).save(tmp_path / "image.png")
    places = {"model": model, "image": tmp_path / "image.png", "out": tmp_path / "out"}
    request.getfixturevalue("small_disk")
    line = refused([word.format(**places) for word in argv], capsys)
    assert str(tmp_path / "out") in line
    assert "cannot be written" in line
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


def test_a_text_on_a_full_disk_is_named_and_leaves_nothing(tmp_path, small_disk):
    with pytest.raises(UserError, match=r"a\.json: cannot be written \(File too large\)"):
        write_text(tmp_path / "a.json", "x" * 1000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "argv",
    [
        ["convert", LONG, "--output", "{out}"],
        ["convert", "{model}", "--to", "timm", "--output", LONG],
        ["publish", LONG, "someone/model", "--dry-run"],
        ["publish", "{model}", "someone/model", "--dry-run", "--stage", LONG],
        ["predict", LONG, "--model", "{model}"],
        ["predict", "{image}", "--model", LONG],
        ["evaluate", "--dataset", LONG, "--model", "{model}"],
        ["evaluate", "--dataset", "digits", "--model", "{model}", "--output", LONG],
        ["attend", LONG, "--model", "{model}", "--output", "{out}.png"],
        ["train", "--recipe", LONG, "--output", "{out}"],
        ["train", "--recipe", "digits", "--output", LONG],
        ["train", "--recipe", "digits", "--dataset", LONG, "--output", "{out}"],
        ["demo", "--output", LONG],
    ],
    ids=lambda argv: " ".join(word if word != LONG else "LONG" for word in argv[:3]),
)
def test_a_path_that_is_too_long_is_named(argv, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40)).save(tmp_path / "image.png")
    places = {"model": model, "image": tmp_path / "image.png", "out": tmp_path / "out"}
    line = refused([word.format(**places) for word in argv], capsys)
    assert LONG in line
    assert "fault of hf_vit_family" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(13, "Permission denied", "/a/b"), "/a/b: Permission denied"),
        (OSError("no file named model.safetensors\nand more"), "no file named model.safetensors"),
        (SafetensorError("header too large"), "damaged: header too large"),
        (pickle.UnpicklingError("invalid load key"), "damaged or holds more than tensors: invalid load key"),
        (MemoryError(), "too little memory"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_nothing_foresaw_is_one_line(error, text, monkeypatch, capsys):
    def run(args):
        raise error

    monkeypatch.setattr(info, "run", run)
    line = refused(["info", "x"], capsys)
    assert text in line
    assert "and more" not in line


def test_a_fault_of_the_library_says_where_to_report_it_and_shows_its_traceback_on_demand(monkeypatch, capsys):
    monkeypatch.setattr(info, "run", lambda args: [][0])
    assert main(["info", "x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for part in ("IndexError", "issue tracker", "--debug"):
        assert part in line
    assert main(["info", "x", "--debug"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "test_refusals.py" in shown
    assert shown.splitlines()[-1] == line


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("[1]", "line 2 is no JSON object"),
        ('{"split": "train"}', "line 2 has no number as its 'epoch'"),
        ('{"split": "train", "epoch": 1, "step": 1, "loss": "low"}', "line 2 has no number as its 'loss'"),
        ('{"split": "evaluation", "epoch": 1, "step": null}', "line 2 has no number as its 'step'"),
    ],
)
def test_lines_that_cannot_be_drawn_are_named(line, text, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"a": 1}) + "\n" + line + "\n")
    with pytest.raises(UserError, match=text):
        plot_curves(path, tmp_path / "curves.png")
    assert not Path(tmp_path / "curves.png").exists()


def test_texts_of_files_do_not_act_on_the_terminal(model, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(i): f"\x1b[31m\u202elabel\n{i}\u009b" for i in range(5)}
    config["label2id"] = {name: int(i) for i, name in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    Image.new("RGB", (40, 40)).save(tmp_path / "image.png")
    assert main(["predict", str(tmp_path / "image.png"), "--model", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == 6
    assert r"\x1b[31m\u202elabel 4\x9b" in shown
    assert not {"\x1b", "\u202e", "\x9b"} & set(shown)
    assert main(["info", "\x1b[31m"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_names_of_files_do_not_act_on_the_terminal(tmp_path, capsys):
    """In the words of a run and of `info`; a name that is no UTF-8 is printed, too."""
    output = tmp_path / "\x1b[31m\udcff"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({**TINY_RUN, "max_steps": 1}))
    assert main(["train", "--recipe", str(recipe), "--output", str(output), "--resume"]) == 0
    assert main(["info", "vit_tiny_patch16_224", "--set", "hidden_act=gelu", 'id2label={"0": "\x1b[31m"}']) in (0, 2)
    shown = capsys.readouterr()
    assert shown.out.count(r"\x1b[31m\udcff") >= 2
    assert "\x1b[31m" not in shown.out + shown.err


def test_everything_is_printed_by_the_function_that_escapes():
    package = Path(hf_vit_family.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("print", "warn"):
                assert path.name == "notices.py", f"{path.name}:{node.lineno}"


def test_what_is_published_is_shown_before_the_push(model, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    replace(TRAINING, command="vit-family train --dataset /mnt/alice/scans \x1b[31m").write(folder)
    monkeypatch.setattr(publish, "verify", lambda staged: Verification(1, ("AutoModel",)))
    assert main(["publish", str(folder), "someone/model", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "training.json: dataset: scans\n" in shown
    assert r"training.json: command: vit-family train --dataset scans '\x1b[31m'" in shown
    assert "alice" not in shown

"""
Bad input of every kind, in every file that a command reads and every folder that it writes: each gives one line that
names what is at fault, exit code 2, and nothing half-written. What is only less than usual, such as a record that is
missing, gives the right result; `RIGHT` lists it.

What checkpoints to convert may claim, what a run finds in its output folder and what its checkpoints hold is in
test_damage.py, test_output_folder.py and test_training_resume.py; an endpoint that never answers is in
test_hub_access.py.
"""

import contextlib
import json
import os
import re
import resource
import shutil
import struct
import tempfile
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from hub_server import Repository
from models import tiny_model
from PIL import Image
from safetensors.torch import load_file, save_file
from test_hub_access import run_jobs
from test_publish import CONVERSION, EVALUATION, TRAINING
from test_training import forget_accelerate  # noqa: F401 - a fixture that applies to all tests
from training_runs import TINY_RUN
from vit_family_launcher import main

from hf_vit_family import create_processor
from hf_vit_family.commands import publish
from hf_vit_family.publishing.publish import Verification

NOBODY = 65534


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A folder of everything that commands read."""
    root = tmp_path_factory.mktemp("good")
    tiny_model("vit", num_labels=10).save_pretrained(root / "model")
    create_processor("vit_base_patch16_224", size=32).save_pretrained(root / "model")
    for fact in (CONVERSION, TRAINING, EVALUATION):
        fact.write(root / "model")
    Image.new("RGB", (40, 40)).save(root / "image.png")
    Image.new("RGB", (8, 8)).save(root / "small.png")
    cell = {"bytes": (root / "small.png").read_bytes(), "path": None}
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[str(i) for i in range(10)])})
    rows = Dataset.from_dict({"image": [cell] * 20, "label": [*range(10)] * 2}, features=features)
    rows.to_parquet(root / "rows.parquet")
    (root / "real.json").write_text(json.dumps([[i % 10] for i in range(20)]))
    (root / "recipe.yaml").write_text(json.dumps({**TINY_RUN, "max_steps": 1}))
    case = golden.load("deit", "plain")
    torch.save({"model": case.state_dict}, root / "source.pth")
    save_file(dict(case.state_dict), root / "source.safetensors")
    np.savez(root / "source.npz", **{key: tensor.numpy() for key, tensor in case.state_dict.items()})
    (root / "kwargs.json").write_text(json.dumps(case.kwargs))
    return root


TRAIN = ["train", "--recipe", "{recipe.yaml}", "--output", "{out}"]
FINE_TUNE = [*TRAIN, "--model", "{model}", "--set", "drop_path_rate=0.0"]
EVALUATE = ["evaluate", "--model", "{model}", "--dataset", "{rows.parquet}", "--num_workers", "0", "--output", "{out}"]
CONVERT = ["--architecture", "deit", "--kwargs", "@kwargs.json", "--output", "{out}"]
# What a command is, and each file that it reads.
MODEL_FILES = ("model/config.json", "model/model.safetensors", "model/preprocessor_config.json")
FACTS = ("model/conversion.json", "model/training.json", "model/evaluation.json")
COMMANDS = {
    "predict": (["predict", "{image.png}", "--model", "{model}"], ("image.png", *MODEL_FILES)),
    "attend": (["attend", "{image.png}", "--model", "{model}", "--output", "{out}.png"], ("image.png", *MODEL_FILES)),
    "evaluate": ([*EVALUATE, "--real_labels", "{real.json}"], ("rows.parquet", "real.json", *MODEL_FILES)),
    "publish": (
        ["publish", "{model}", "someone/model", "--dry-run", "--stage", "{out}"],
        (*MODEL_FILES, *FACTS),
    ),
    "attend maps": (
        ["attend", "{image.png}", "--model", "{model}", "--method", "maps", "--output", "{out}.png"],
        MODEL_FILES[1:2],
    ),
    "write back": (["convert", "{model}", "--to", "original", "--output", "{out}"], (*MODEL_FILES[:2], FACTS[0])),
    "convert .pth": (["convert", "{source.pth}", *CONVERT], ("source.pth",)),
    "convert .npz": (["convert", "{source.npz}", *CONVERT], ("source.npz",)),
    "convert .safetensors": (["convert", "{source.safetensors}", *CONVERT], ("source.safetensors",)),
    "train": ([*TRAIN, "--dataset", "{rows.parquet}", "--num_workers", "0"], ("recipe.yaml", "rows.parquet")),
    "fine-tune": (FINE_TUNE, (*MODEL_FILES, *FACTS[:2])),
    "distil": ([*TRAIN, "--image_size", "32", "--teacher", "{model}"], MODEL_FILES),
}


def rewrite(path: Path, **fields) -> None:
    """Changes a JSON object; of YAML, what is JSON is YAML."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def another_type(path: Path) -> None:
    """A picture in place of a text, and a text in place of anything else."""
    path.write_bytes(b"\x89PNG\r\n\x1a\n" if path.suffix in (".json", ".yaml") else b"text\n")


def no_utf8(path: Path) -> None:
    path.write_bytes(b'{"a": "\xff\xfe\x80"}')


def a_list(path: Path) -> None:
    path.write_text("[1, 2]")


def nested(path: Path) -> None:
    path.write_text("[" * 100_000)


def unknown_field(path: Path) -> None:
    rewrite(path, no_such_field_anywhere=1)


def wrong_values(path: Path) -> None:
    """Every value of another type."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: {"a": []} for name in content} | {"model_type": content.get("model_type")}))


def nothing_in_it(path: Path) -> None:
    path.write_text("{}")


def no_permission(path: Path) -> None:
    path.chmod(0)


def nan(path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    key = max(tensors, key=lambda name: tensors[name].ndim)
    tensors[key].view(-1)[0] = float("nan")
    save_file(tensors, path, {"format": "pt"})


def wrong_shape(path: Path) -> None:
    tensors = load_file(path)
    key = next(name for name in tensors if name.endswith("patch_embeddings.projection.weight") or "proj" in name)
    save_file({**tensors, key: tensors[key][:-1].clone()}, path, {"format": "pt"})


def missing_weight(path: Path) -> None:
    tensors = load_file(path)
    save_file({name: tensors[name] for name in sorted(tensors)[1:]}, path, {"format": "pt"})


def huge_claim(path: Path) -> None:
    """A header that is longer than the file, or speaks of tensors that are."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def huge_image(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 2**30, 2**30)
    path.write_bytes(data)


ANY = {
    "missing": Path.unlink,
    "empty": empty,
    "truncated": truncated,
    "a folder": a_folder,
    "another type": another_type,
    "no permission": no_permission,
}
TEXT = {
    "no UTF-8": no_utf8,
    "a list": a_list,
    "nested": nested,
    "unknown field": unknown_field,
    "wrong values": wrong_values,
    "nothing in it": nothing_in_it,
}
OF_TYPE = {
    ".json": TEXT,
    ".yaml": TEXT,
    ".safetensors": {
        "nan": nan,
        "wrong shape": wrong_shape,
        "missing weight": missing_weight,
        "huge claim": huge_claim,
    },
    ".png": {"huge claim": huge_image},
}
# Kinds that only an object can be of, not a list of labels.
APART = {("real.json", "unknown field"), ("real.json", "wrong values")}
# What is right all the same: files may hold fields of later versions; a processor has defaults; records may be missing;
# and of a model that training starts from, what has no weights starts at random, with a notice.
RIGHT = {
    *((command, "model/config.json", "unknown field") for command in COMMANDS),
    *((command, "model/preprocessor_config.json", kind)
      for command in COMMANDS for kind in ("unknown field", "nothing in it")),
    *((command, fact, "missing") for command in COMMANDS for fact in FACTS),
    ("fine-tune", "model/model.safetensors", "missing weight"),
}  # fmt: skip


def kinds(file: str) -> dict:
    """The kinds of damage that a file can have."""
    found = {**ANY, **OF_TYPE.get(Path(file).suffix, {})}
    return {kind: damage for kind, damage in found.items() if (file, kind) not in APART}


CASES = [(command, file, kind) for command, (_, files) in COMMANDS.items() for file in files for kind in kinds(file)]


@contextlib.contextmanager
def unprivileged():
    """Nothing is permitted to root that is not to others: files are judged by the effective user."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def world(good) -> Path:
    """A copy of `good` that other users may read; those of pytest are their owner's only."""
    root = Path(tempfile.mkdtemp())
    try:
        shutil.copytree(good, root, dirs_exist_ok=True)
        for path in (root, *root.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o644)
        yield root
    finally:
        for path in root.rglob("*"):
            path.chmod(0o755)
        shutil.rmtree(root)


@pytest.fixture
def caches(monkeypatch):
    """
    A cache of data sets and a folder for temporary files that everybody may write to; and what is staged is not
    verified, which takes a process.
    """
    monkeypatch.setattr(publish, "verify", lambda staged: Verification(1, ("AutoModel",)))
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    shutil.rmtree(folder)


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder, with its size and the time of its last change."""
    return {
        str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else (0, 0)
        for path in root.rglob("*")
    }


def arguments(command: list[str], root: Path, out: str = "out") -> list[str]:
    """`{name}` is a path, `@name` what a file holds."""
    words = []
    for word in command:
        if word.startswith("@"):
            words.append((root / word[1:]).read_text())
        else:
            words.append(re.sub(r"{([^}]+)}", lambda match: str(root / (out if match[1] == "out" else match[1])), word))
    return words


def error_lines(text: str) -> list[str]:
    """Finds the lines about an error: neither notes nor progress bars."""
    return [
        line for line in text.splitlines()
        if line.strip() and not line.startswith("note: ") and not re.search(r"\d%\||examples/s|\dit/s", line)
    ]  # fmt: skip


def refused(argv: list[str], root: Path, capsys) -> str:
    """The one line of a refusal, which has left everything as it was."""
    before = listing(root)
    capsys.readouterr()
    code = main(argv)
    shown = capsys.readouterr()
    lines = error_lines(shown.err)
    assert code == 2, shown
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"vit-family {argv[0]}: ")
    assert "a fault of hf_vit_family" not in lines[0]
    assert "Traceback" not in shown.err + shown.out
    assert len(lines[0]) < 1000
    assert listing(root) == before
    return lines[0]


@pytest.mark.parametrize(("command", "file", "kind"), CASES, ids=lambda value: value.replace("/", "."))
def test_a_bad_file_is_one_line(command, file, kind, world, caches, capsys):
    argv = arguments(COMMANDS[command][0], world)
    kinds(file)[kind](world / file)
    with unprivileged() if kind == "no permission" else contextlib.nullcontext():
        if (command, file, kind) in RIGHT:
            assert main(argv) == 0
            return
        line = refused(argv, world, capsys)
    # Of what a file holds, what is at fault may be named: a key, an option, the model's outputs.
    assert re.search(f"{re.escape(str(world))}/(?!out)|key '|option '|not finite", line), line


# Folders that cannot be written to, and a disk without room


@pytest.mark.parametrize("place", ["read-only", "below a file"])
@pytest.mark.parametrize(
    "command",
    ["attend", "evaluate", "publish", "write back", "convert .pth", "train", "fine-tune", "benchmark", "demo"],
)
def test_an_output_that_cannot_be_written_is_one_line(command, place, world, caches, capsys):
    others = {
        "benchmark": ["benchmark", "vit_tiny_patch16_224", "--json", "{out}.json"],
        "demo": ["demo", "--output", "{out}"],
    }
    argv = arguments(others.get(command) or COMMANDS[command][0], world, "locked/out")
    if place == "read-only":
        (world / "locked").mkdir()
        (world / "locked").chmod(0o555)
    else:
        (world / "locked").write_text("a file")
    with unprivileged():
        line = refused(argv, world, capsys)
    assert f"{world}/locked" in line
    assert "cannot be written" in line


def test_evaluate_says_that_the_disk_is_full(world, caches, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    argv = arguments(EVALUATE, world)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        assert main([*argv[:4], "digits", *argv[5:], "--max_eval_samples", "8"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (line,) = error_lines(capsys.readouterr().err)
    assert "cannot be written" in line
    assert not any((world / "out").glob("*")) if (world / "out").exists() else True


# Answers of the Hub

ANSWERS = {
    "absent": "no such repository",
    "private": "or it is private",
    "forbidden": "may not do this (403)",
    "status-429": "too many requests (429)",
    "status-500": "a fault of its own (500)",
}


@pytest.fixture(scope="module")
def answers(hub, good, tmp_path_factory):
    """Collects what every command that asks the Hub says to each of its answers. Nobody waits between tries."""
    root, jobs = tmp_path_factory.mktemp("answers"), {}
    hub.repositories["private/model"] = hub.datasets["private/model"] = Repository(True)
    for owner in ANSWERS:
        model, output = f"{owner}/model", ["--output", str(root / "out")]
        jobs |= {
            ("predict", owner): ["predict", good / "image.png", "--model", model],
            ("attend", owner): ["attend", good / "image.png", "--model", model, "--output", root / "out.png"],
            ("evaluate", owner): ["evaluate", "--model", model, "--dataset", "digits", *output],
            ("data", owner): ["evaluate", "--model", good / "model", "--dataset", model, *output],
            ("convert", owner): ["convert", model, *output],
            ("convert a file", owner): ["convert", f"{model}:model.npz", *output],
            ("train", owner): ["train", "--model", model, "--dataset", "digits", *output],
            ("teacher", owner): [*arguments(COMMANDS["train"][0][:3], good), *output, "--teacher", model],
        }
    listed = [{"argv": [str(word) for word in argv], "without": ["HF_TOKEN"]} for argv in jobs.values()]
    return root, dict(zip(jobs, run_jobs(hub, root / "client", listed, HURRY="1"), strict=True))


@pytest.mark.xdist_group("answers")
@pytest.mark.parametrize("owner", ANSWERS)
@pytest.mark.parametrize(
    "command", ["predict", "attend", "evaluate", "data", "convert", "convert a file", "train", "teacher"]
)
def test_an_answer_of_the_hub_is_one_line(command, owner, answers):
    root, results = answers
    result = results[command, owner]
    assert result["code"] == 2, result
    (line,) = error_lines(result["stderr"])
    assert f"{owner}/model" in line
    assert ANSWERS[owner] in line or (command == "data" and "Hub" in line), line
    assert not (root / "out").exists()

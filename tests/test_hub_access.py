"""Commands read the revision that was named, push to where they were told, and do not wait for ever.

Each group of commands runs in a process of its own against a stand-in, since the address of the Hub is fixed on import.
"""

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from hub_server import Commit, Repository
from models import tiny_model
from PIL import Image as PILImage
from safetensors.torch import load_file
from test_publish import contents, save_tiny
from training_runs import TINY_RUN
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_vit_family import create_processor
from hf_vit_family.publishing.publish import stage

WHOLE = {**TINY_RUN, "set": {}, "drop_path_rate": None, "max_steps": 1, "image_size": None}


def run_jobs(hub, folder: Path, jobs: list[list], **environment: str) -> list[dict]:
    """Exit code, output and errors of each command."""
    folder.mkdir()
    jobs = [job if isinstance(job, dict) else {"argv": [str(word) for word in job]} for job in jobs]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    client = Path(__file__).with_name("hub_client.py")
    arguments = [sys.executable, client, "publish", folder / "jobs.json", folder / "results.json"]
    environment = {**os.environ, **hub.environment, "HF_HOME": str(folder / "home"), **environment}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "results.json").read_text())


def saved(names: list[str], folder: Path) -> dict[str, bytes]:
    model = tiny_model("vit", num_labels=len(names))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    model.save_pretrained(folder)
    create_processor("vit_base_patch16_224", size=32).save_pretrained(folder)
    return contents(folder)


def rows(count: int) -> dict[str, bytes]:
    """A data set of that many images of two of the digits."""
    buffer, png = io.BytesIO(), io.BytesIO()
    PILImage.new("RGB", (8, 8)).save(png, "PNG")
    columns = {"image": [{"bytes": png.getvalue(), "path": None}] * count, "label": [0, 1] * (count // 2)}
    features = Features({"image": Image(), "label": ClassLabel(names=["0", "1"])})
    Dataset.from_dict(columns, features=features).to_parquet(buffer)
    return {"test.parquet": buffer.getvalue()}


@pytest.fixture(scope="module")
def read(hub, tmp_path_factory):
    """Every command that reads, at the first commit of a repository and at its last, which no command can use."""
    root = tmp_path_factory.mktemp("read")
    good, bad = saved([str(i) for i in range(10)], root / "good"), saved(list("abcdefghij"), root / "bad")
    model = Repository(False, [Commit("first", good), Commit("last", bad)])
    scans = Repository(False, [Commit("first", rows(4)), Commit("last", rows(6))])
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    theirs = []
    for labels in (3, 5):
        folder = root / f"theirs-{labels}"
        ViTForImageClassification(ViTConfig(num_attention_heads=2, num_labels=labels, **sizes)).save_pretrained(folder)
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
        (folder / "README.md").write_text(f"---\nlicense: {'mit' if labels == 3 else 'apache-2.0'}\n---\n")
        theirs.append(Commit("push", contents(folder)))
    hub.repositories |= {"someone/model": model, "someone/theirs": Repository(False, theirs)}
    hub.datasets["someone/scans"] = scans
    fields = json.loads((root / "theirs-3" / "config.json").read_text())
    del fields["id2label"], fields["label2id"]
    PILImage.new("RGB", (40, 40)).save(root / "image.png")
    first = {"model": model.commits[0].oid, "scans": scans.commits[0].oid, "theirs": theirs[0].oid}
    recipe = root / "recipe.yaml"
    recipe.write_text(json.dumps({**WHOLE, "model": "someone/model"}))
    teacher = root / "teacher.yaml"
    teacher.write_text(json.dumps({**TINY_RUN, "max_steps": 1, "image_size": 32, "teacher": "someone/model"}))
    evaluate = ["evaluate", "--dataset", "digits", "--max_eval_samples", "8", "--num_workers", "0"]
    scanned = ["evaluate", "--model", root / "good", "--dataset", "someone/scans", "--num_workers", "0"]
    commands = {
        "predict": (["predict", root / "image.png", "--model", "someone/model"], "--revision", "model"),
        "attend": (["attend", root / "image.png", "--model", "someone/model"], "--revision", "model"),
        "evaluate": ([*evaluate, "--model", "someone/model", "--output", root / "out"], "--revision", "model"),
        "data": ([*scanned, "--output", root / "scanned"], "--dataset-revision", "scans"),
        "convert": (["convert", "someone/theirs"], "--revision", "theirs"),
        "file": (["convert", "someone/theirs:model.safetensors"], "--revision", "theirs"),
        "train": (["train", "--recipe", recipe], "--revision", "model"),
        "teacher": (["train", "--recipe", teacher], "--teacher-revision", "model"),
    }
    writing = {"attend": ".png", "convert": "", "file": "", "train": "", "teacher": ""}
    jobs, keys = [], []
    for name, (argv, option, repository) in commands.items():
        for which, revision in (("first", [option, first[repository]]), ("last", []), ("none", [option, "no-such"])):
            output = ["--output", root / f"{name}-{which}{writing[name]}"] if name in writing else []
            alone = ["--kwargs", json.dumps(fields)] if name == "file" else []
            jobs.append([*argv, *revision, *output, *alone])
            keys.append((name, which))
    return root, dict(zip(keys, run_jobs(hub, root / "client", jobs), strict=True))


READING = ["predict", "attend", "evaluate", "data", "convert", "file", "train", "teacher"]


@pytest.mark.parametrize("name", READING)
def test_the_revision_that_is_named_is_read(name, read):
    root, results = read
    first, last = results[name, "first"], results[name, "last"]
    assert first["code"] == 0, first
    if name == "predict":
        labels = [line.split()[-1] for line in first["stdout"].splitlines()[1:]]
        assert all(label.isdigit() for label in labels)
        assert "a" <= last["stdout"].splitlines()[1].split()[-1] <= "j"
    elif name in ("evaluate", "teacher"):
        assert last["code"] == 2
    elif name == "data":
        assert "4 images of someone/scans" in first["stdout"]
        assert "6 images of someone/scans" in last["stdout"]
    elif name in ("convert", "file"):
        for which, labels, license in (("first", 3, "mit"), ("last", 5, "apache-2.0")):
            folder = root / f"{name}-{which}"
            assert load_file(folder / "model.safetensors")["classifier.weight"].shape[0] == labels
            assert json.loads((folder / "conversion.json").read_text())["license"] == license
    elif name == "train":
        assert "new head" in last["stderr"]
        assert "new head" not in first["stderr"]
    else:
        assert (root / f"{name}-first.png").read_bytes() != (root / f"{name}-last.png").read_bytes()


@pytest.mark.parametrize("name", READING)
def test_a_revision_that_does_not_exist_is_named(name, read):
    result = read[1][name, "none"]
    assert result["code"] == 2
    line = result["stderr"].splitlines()[-1]
    assert "no such revision" in line or "no-such" in line, line


def test_what_is_not_on_the_hub_has_no_revision(tmp_path, capsys):
    from vit_family_launcher import main

    image, model = tmp_path / "image.png", save_tiny("vit", tmp_path / "model")
    PILImage.new("RGB", (40, 40)).save(image)
    capsys.readouterr()
    output = ["--output", str(tmp_path / "out")]
    train = ["train", "--model", "vit_tiny_patch16_224", "--dataset", "digits", "--image_size", "16", *output]
    for argv in (
        ["predict", str(image), "--model", str(model), "--revision", "main"],
        ["evaluate", "--model", str(model), "--dataset", "digits", "--dataset-revision", "main"],
        ["convert", str(model), "--revision", "main", *output],
        ["convert", str(model), "--to", "original", "--revision", "main", *output],
        [*train, "--revision", "main"],
        [*train, "--dataset_revision", "main"],
        [*train, "--teacher", "timm:vit_tiny_patch16_224", "--teacher_revision", "main", "--set", "patch_size=4"],
        ["publish", str(model), "someone/model", "--revision", "dev", "--create-pr"],
    ):
        assert main(argv) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
        assert "revision" in line or "pull request" in line, line
    assert not (tmp_path / "out").exists()


def test_a_push_goes_to_the_branch_or_pull_request_that_is_named(hub, tmp_path):
    staged = tmp_path / "staged"
    stage(save_tiny("deit", tmp_path / "source"), staged, "someone/model")
    old = {"notes.txt": b"kept", "modeling_gone.py": b""}
    hub.repositories["someone/pushed"] = Repository(False, [Commit("Publish with hf_vit_family 0", old)])
    push = {"folder": str(staged), "repo_id": "someone/pushed"}
    jobs = [
        {"push": {**push, "revision": "dev"}},
        {"push": {**push, "revision": "dev"}},
        {"push": {**push, "create_pr": True}},
        {"push": {**push, "revision": "refs/pr/1"}},
        {"push": {**push, "revision": "refs/pr/7"}},
        {"push": {**push, "repo_id": "someone/absent", "create_pr": True}},
        {"push": {**push, "repo_id": "someone/new", "revision": "dev"}},
    ]
    results = run_jobs(hub, tmp_path / "client", jobs)
    assert [result["code"] for result in results] == [0, 0, 0, 0, 2, 2, 0], results
    repository, new = hub.repositories["someone/pushed"], contents(staged)
    assert [commit.files for commit in repository.commits] == [old]
    assert repository.branches.keys() == {"dev", "refs/pr/1"}
    for branch in repository.branches.values():
        assert branch[-1].files == new | {"notes.txt": b"kept"}
    assert results[2]["stdout"].strip() == f"{hub.url}/someone/pushed/discussions/1"
    assert "/commit/" in results[0]["stdout"]
    assert "no such revision" in results[4]["stderr"]
    assert "no such repository to open a pull request in" in results[5]["stderr"]
    assert "someone/absent" not in hub.repositories
    assert hub.repositories["someone/new"].branches["dev"][-1].files == new | {".gitattributes": b""}


def test_an_endpoint_that_never_answers_is_given_up(hub, tmp_path):
    """It takes connections, and is silent. That a command ends at all is what counts: without time-outs none would."""
    source = save_tiny("vit", tmp_path / "source")
    PILImage.new("RGB", (40, 40)).save(tmp_path / "image.png")
    output = ["--output", tmp_path / "out"]
    jobs = [
        ["predict", tmp_path / "image.png", "--model", "someone/model"],
        ["evaluate", "--model", source, "--dataset", "someone/scans"],
        ["convert", "someone/model", *output],
        ["convert", "someone/model:model.npz", *output],
        ["train", "--model", "someone/model", "--dataset", "digits", *output],
        ["train", "--model", "vit_tiny_patch16_224", "--dataset", "someone/scans", *output],
        {"push": {"folder": str(source), "repo_id": "someone/model"}},
    ]
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        limits = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
        results = run_jobs(hub, tmp_path / "client", jobs, HF_ENDPOINT=endpoint, **limits)
    for result in results:
        assert result["code"] == 2, result
        (line,) = [line for line in result["stderr"].splitlines() if not line.startswith("note: ")]
        assert "the Hub did not answer in time" in line or "Couldn't reach 'someone/scans' on the Hub" in line, line
    assert not (tmp_path / "out").exists()

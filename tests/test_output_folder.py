"""A run keeps everything in its output folder that no run has written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import tiny_model
from test_training import Counting, forget_accelerate, make_loop  # noqa: F401 - a fixture that applies to all tests
from training_runs import TINY_RUN, Run, read_lines, train_tiny
from vit_family_launcher import main

from hf_vit_family import create_processor
from hf_vit_family.errors import UserError
from hf_vit_family.files import check_writable, locked_folder, whole_folder, write_text
from hf_vit_family.training.output import is_written_by_runs

STEP = "step-000000006"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The output of a run of one epoch, 6 steps."""
    output = tmp_path_factory.mktemp("trained") / "run"
    assert Run(output, epochs=1).wait() is None
    return output


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Going on where there is nothing to go on from


@pytest.mark.parametrize("what", ["a model", "files of others", "only damaged checkpoints", "a data set"])
def test_resume_without_a_checkpoint_leaves_the_folder_alone(what, run, tmp_path):
    if what == "a model":
        shutil.rmtree(run / "checkpoints")
    elif what == "only damaged checkpoints":
        (run / "checkpoints" / STEP).rename(run / "checkpoints" / f"damaged-{STEP}")
        for path in (*run.glob("*.json"), run / "model.safetensors", run / "curves.png"):
            path.unlink()
    else:
        shutil.rmtree(run)
        (run / "cat").mkdir(parents=True)
        (run / ("thesis.tex" if what == "files of others" else "cat/1.jpg")).write_text("mine")
    before = contents(run)
    with pytest.raises(UserError, match="no checkpoint to go on from"):
        train_tiny(run, epochs=1, resume=True)
    assert contents(run) == before


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "what a run leaves that is killed before a checkpoint"])
def test_resume_of_what_has_not_begun_says_that_it_starts_anew(left, tmp_path, capsys):
    output = tmp_path / "run"
    if left != "nothing":
        (output / "checkpoints" / f"unfinished-{STEP}").mkdir(parents=True)
    if left == "an empty folder":
        shutil.rmtree(output / "checkpoints")
    elif left != "nothing":
        (output / "metrics.jsonl").write_text('{"split": "train", "step": 1, "epoch": 0.1, "loss": 2.0}\n{"split": "tr')
        (output / ".lock").touch()
        (output / ".saving-abcd1234").mkdir()
    train_tiny(output, max_steps=2, resume=True)
    assert f"{output} holds no checkpoint: the run starts from the beginning" in capsys.readouterr().out
    assert [line["step"] for line in read_lines(output, "train")] == [1, 2]
    assert not list(output.glob(".*"))
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-000000002"]


# Replacing an earlier run


def test_overwrite_deletes_what_a_run_wrote_and_nothing_else(run):
    (run / "thesis.tex").write_text("mine")
    (run / "checkpoints" / f"{STEP}.bak").mkdir()
    (run / "checkpoints" / f"{STEP}.bak" / "notes.txt").write_text("mine")
    (run / "vit-family" / "17").mkdir(parents=True)
    (run / "vit-family" / "events.out.tfevents.17.host").write_text("of TensorBoard's tracker")
    (run / "vit-family" / "17" / "hparams.yml").write_text("of TensorBoard's tracker")
    (run / "elsewhere").symlink_to(run.parent)
    (run / "model.safetensors.index.json").mkdir()  # not a file of a run's
    model = (run / "model.safetensors").read_bytes()
    train_tiny(run, max_steps=2, overwrite=True)
    assert (run / "thesis.tex").read_text() == (run / "checkpoints" / f"{STEP}.bak" / "notes.txt").read_text() == "mine"
    assert (run / "elsewhere").is_symlink()
    assert (run / "model.safetensors.index.json").is_dir()
    assert not (run / "vit-family").exists()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000000002", f"{STEP}.bak"]
    assert (run / "model.safetensors").read_bytes() != model
    assert [line["step"] for line in read_lines(run, "train")] == [1, 2]


@pytest.mark.parametrize("lines", ["a,b\n1,2\n", '{"a": 1}\n', "[1]\n"])
def test_metrics_of_others_are_no_earlier_run(lines, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(lines)
    (tmp_path / "config.json").write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="holds no earlier run"):
        train_tiny(tmp_path, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("option", ["model", "dataset", "teacher", "teacher file", "recipe"])
@pytest.mark.parametrize("linked", [False, True])
def test_overwrite_refuses_where_what_is_read_would_be_deleted(option, linked, run, tmp_path, capsys):
    path = run / "data" / "cat"
    path.mkdir(parents=True)
    path = {"model": run, "dataset": run / "data", "teacher": run}.get(option, run / "file.yaml")
    (run / "file.yaml").write_text("lr: 0.1")
    if linked:
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    before = contents(run)
    arguments = ["--output", str(run), "--overwrite", "--model", "vit_tiny_patch16_224"]
    name = option.split()[0]
    value = f"torchvision:resnet18@{path}" if option == "teacher file" else str(path)
    assert main(["train", *arguments, f"--{name}", value]) == 2
    message = capsys.readouterr().err.strip()
    assert f"{name} {value} lies in the output {run}" in message
    assert "\n" not in message
    assert contents(run) == before


@pytest.mark.parametrize("start", ["image variant", "video variant", "a published folder"])
def test_every_file_that_a_run_writes_is_one_that_it_may_delete(start, tmp_path, trained):
    output, options = tmp_path / "run", {}
    if start == "video variant":
        small = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1, "patch_size": 8}
        options = {"model": "timesformer_base_k400", "set": small, "dataset": "moving_digits", "num_frames": 2}
        options |= {"image_size": 16, "max_train_samples": 16, "max_eval_samples": 8, "crop_padding": 0, "mixup": 0.0}
    elif start == "a published folder":
        arguments = ["--license", "apache-2.0", "--dry-run", "--stage", str(tmp_path / "staged")]
        assert main(["publish", str(trained), "someone/digits", *arguments]) == 0
        options = {"model": str(tmp_path / "staged"), "set": {}, "drop_path_rate": None}
    train_tiny(output, max_steps=1, **options)
    names = {path.name for path in output.iterdir()}
    assert {name for name in names if not is_written_by_runs(name)} == {"checkpoints"}
    assert {"config.json", "model.safetensors", "training.json", "metrics.jsonl"} <= names
    assert (start == "a published folder") == ("modeling_vit.py" in names)


def test_all_files_have_the_same_mode(tmp_path):
    mask = os.umask(0o027)
    try:
        train_tiny(tmp_path / "run", max_steps=1)
    finally:
        os.umask(mask)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert set(modes.values()) == {"0o640"}, modes


# Two processes in one folder

HOLD = """
import os, signal, sys, time
from torch.utils.data import DataLoader
from hf_vit_family.files import locked_folder

with locked_folder(sys.argv[1]):
    loader = iter(DataLoader(range(64), num_workers=2))  # processes that outlive a killed parent by seconds
    next(loader)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_run_at_a_time_and_is_free_when_that_is_killed(tmp_path):
    output = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(output)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "ready\n"
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(UserError, match=rf"is in use by process {holder.pid} on \S+ since 20\d\d-"):
                train_tiny(output, **options)
    finally:
        holder.kill()
        holder.wait()
    with locked_folder(output):
        assert json.loads((output / ".lock").read_text())["pid"] == os.getpid()
    assert not (output / ".lock").exists()


def test_a_lock_leaves_no_trace_of_a_run_that_could_not_start(tmp_path):
    with pytest.raises(UserError, match="nothing-here"):
        train_tiny(tmp_path / "outputs" / "run", dataset="./nothing-here")
    assert not (tmp_path / "outputs").exists()


# Files that appear whole or not at all, and what is left of those that did not


def test_what_a_killed_process_was_writing_goes_at_the_next_start(tmp_path):
    abandoned, living = tmp_path / ".out.unfinished-abcd1234", tmp_path / ".out.unfinished-efgh5678"
    mine = [
        tmp_path / ".out.settings",
        tmp_path / ".out.unfinished-notes-of-mine",
        tmp_path / ".outer.unfinished-abcd1234",
    ]
    for path in (abandoned, living, *mine):
        path.mkdir()
    code = (
        "import sys\nfrom pathlib import Path\nfrom hf_vit_family.files import _flock\n"
        "lock = _flock(Path(sys.argv[1]))\nprint('ready', flush=True)\nsys.stdin.read()"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(living)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout.readline() == "ready\n"
        with whole_folder(tmp_path / "out") as folder:
            write_text(folder / "file", "text")
    finally:
        writer.communicate("")
    assert not abandoned.exists()
    assert living.exists()
    assert all(path.exists() for path in mine)
    assert (tmp_path / "out" / "file").read_text() == "text"


@pytest.mark.parametrize("place", ["below a file", "with too long a name", "in /proc"])
def test_a_folder_that_cannot_be_written_to_is_named(place, tmp_path):
    (tmp_path / "file").touch()
    folder = {"below a file": tmp_path / "file" / "x", "with too long a name": tmp_path / ("x" * 300)}
    with pytest.raises(UserError, match="cannot be written to"):
        check_writable(folder.get(place, Path("/proc/x")))
    check_writable(tmp_path / "not" / "there" / "yet")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def never_loaded(monkeypatch):
    """Loading a model, measuring and converting fail: what is asked first has come before."""

    def fail(*args, **kwargs):
        raise AssertionError("the output was not tested first")

    for name in (
        "evaluate.load_classifier",
        "attend.load_classifier",
        "convert.read_checkpoint",
        "convert.write_checkpoint",
        "benchmark.run_benchmark",
        "demo.save_images",
        "publish.stage",
    ):
        monkeypatch.setattr(f"hf_vit_family.commands.{name}", fail)
    monkeypatch.setattr("hf_vit_family.training.run.load_data", fail)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("vit").save_pretrained(folder)
    create_processor("vit_base_patch16_224", size=32).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "attend", "convert", "convert back", "benchmark", "publish", "demo"]
)
def test_the_output_is_tested_before_anything_is_computed(command, never_loaded, classifier, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    output = str(tmp_path / "file" / "x.png")
    arguments = {
        "train": ["--model", "vit_tiny_patch16_224", "--output", output],
        "evaluate": ["--model", str(classifier), "--dataset", "digits", "--output", output],
        "attend": [str(tmp_path / "file"), "--model", str(classifier), "--output", output],
        "convert": [str(tmp_path / "file"), "--output", output],
        "convert back": [str(classifier), "--to", "original", "--output", output],
        "publish": [str(classifier), "someone/model", "--dry-run", "--stage", output],
        "demo": ["--output", output],
        "benchmark": ["vit_tiny_patch16_224", "--json", output],
    }
    assert main([command.split()[0], *arguments[command]]) == 2
    message = capsys.readouterr().err.strip()
    assert "cannot be written to (Not a directory)" in message
    assert "\n" not in message


# Numbers that are not finite


def broken_model(folder: Path, value: float) -> Path:
    model = tiny_model("vit", num_labels=10)
    with torch.no_grad():
        model.vit.layers[1].mlp.fc1.weight[0, 0] = value
    model.save_pretrained(folder)
    create_processor("vit_base_patch16_224", size=32).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", ["predict", "evaluate", "publish"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_said_by_that_name(command, value, tmp_path, capsys):
    from hf_vit_family.commands.demo import save_images

    model = broken_model(tmp_path / "model", value)
    arguments = {
        "predict": [*map(str, save_images(tmp_path / "images")[:1]), "--model", str(model)],
        "evaluate": ["--model", str(model), "--dataset", "digits", "--max_eval_samples", "8", "--num_workers", "0"],
        "publish": [str(model), "someone/digits", "--license", "apache-2.0", "--dry-run"],
    }
    capsys.readouterr()
    before = contents(model)
    code = main([command, *arguments[command]])
    assert code == (2 if command != "predict" else code)
    assert code
    assert "not finite" in capsys.readouterr().err
    assert contents(model) == before


@pytest.mark.parametrize("where", ["weight", "buffer", "average", "loss"])
def test_good_checkpoints_are_not_deleted_for_ones_that_are_not_finite(where, tmp_path, monkeypatch):
    from hf_vit_family.training.loop import TrainingLoop

    step, broken_at = TrainingLoop.step, 4

    def break_one(loop, batches):
        metrics = step(loop, batches)
        if loop.position.step == broken_at:
            model = loop.accelerator.unwrap_model(loop.objective).model
            model.register_buffer("statistics", torch.zeros(1), persistent=False)
            tensor = {
                "weight": model.classifier.weight,
                "buffer": model.statistics,
                "average": None if loop.average is None else next(iter(loop.average.average.values())),
                "loss": metrics["loss"],
            }[where]
            with torch.no_grad():
                tensor.view(-1)[0] = float("nan")
        return metrics

    monkeypatch.setattr(TrainingLoop, "step", break_one)
    options = {"checkpoint_steps": 1, "checkpoint_limit": 1, "log_steps": 100}
    with pytest.raises(UserError, match=r"not finite .*; the checkpoint of step 4 is whole"):
        train_tiny(tmp_path / "run", **options)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000004"]


# Evaluations that fail


def test_an_epoch_outlives_its_evaluation(tmp_path, monkeypatch):
    import hf_vit_family.training.run as run_module

    def fail(*args, **kwargs):
        raise UserError("no room for metrics")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "evaluate_model", fail)
        for _ in range(2):
            with pytest.raises(UserError, match="no room"):
                train_tiny(tmp_path / "run", epochs=2, resume=True)
            assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [STEP]
    train_tiny(tmp_path / "run", epochs=2, resume=True)
    train_tiny(tmp_path / "straight", epochs=2)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        tmp_path / "straight" / "model.safetensors"
    ).read_bytes()
    assert read_lines(tmp_path / "run", "evaluation") == read_lines(tmp_path / "straight", "evaluation")


def test_a_mistyped_metric_is_said_before_the_first_step(tmp_path):
    with pytest.raises(UserError, match="best_metric=acuracy: choose one of accuracy, "):
        train_tiny(tmp_path / "run", best_metric="acuracy")
    assert not (tmp_path / "run").exists()


def test_training_and_evaluation_need_no_home(tmp_path):
    recipe, home = tmp_path / "recipe.yaml", tmp_path / "home"
    home.touch()  # nothing can be made below a file, whoever tries
    recipe.write_text(json.dumps({**TINY_RUN, "max_steps": 1}))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    for arguments in (
        ["train", "--recipe", str(recipe), "--output", str(tmp_path / "run")],
        ["evaluate", "--model", str(tmp_path / "run"), "--dataset", "digits", "--max_eval_samples", "8"],
    ):
        command = [sys.executable, "-c", "from vit_family_launcher import main; raise SystemExit(main())", *arguments]
        process = subprocess.run(command, env={**environment, "HOME": str(home)}, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr

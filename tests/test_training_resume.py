"""Checkpoints: a run that is killed, or runs out of disk, goes on as if nothing had happened."""

import json
import os
import random
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from models import tiny_config
from test_training import Counting, forget_accelerate, make_loop  # noqa: F401 - a fixture that applies to all tests
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from training_runs import Run, read_lines, train_tiny

from hf_vit_family.data.sources import open_source
from hf_vit_family.errors import UserError
from hf_vit_family.modeling.modeling_vit import VitfVitForImageClassification
from hf_vit_family.training.checkpoint import Checkpoints, _checksum
from hf_vit_family.training.optim import make_optimizer
from hf_vit_family.training.state import first_not_finite, load_optimizer, load_weights, optimizer_state, weights_state

# More by hand: KILLS=20 pytest tests/test_training_resume.py
KILLS = int(os.environ.get("KILLS", "3"))
LONG = {"epochs": 2 * KILLS, "checkpoint_steps": 2}


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """The output of a run that nobody disturbed."""
    output = tmp_path_factory.mktemp("straight") / "run"
    assert Run(output, **LONG).wait() is None
    return output


def assert_same_tensors(first: Path, second: Path) -> None:
    first, second = safetensors.torch.load_file(first), safetensors.torch.load_file(second)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def assert_same_run(output: Path, straight: Path) -> None:
    """Final weights, average, optimiser and every logged number but the times are equal, bit for bit."""
    assert_same_tensors(output / "model.safetensors", straight / "model.safetensors")
    last = sorted(path.name for path in (straight / "checkpoints").glob("step-*"))[-1]
    ours, theirs = output / "checkpoints" / last, straight / "checkpoints" / last
    assert {path.suffix for path in ours.iterdir()} == {".safetensors", ".json"}
    for path in sorted(theirs.glob("*.safetensors")):
        assert_same_tensors(ours / path.name, path)
    first, second = (json.loads((folder / "progress.json").read_text()) for folder in (ours, theirs))
    for progress in (first, second):
        progress["position"].pop("wall_seconds")
        progress.pop("sha256")
    assert first == second
    for split in ("train", "evaluation"):
        numbers = [
            [{k: v for k, v in line.items() if k not in ("images_per_second", "data_wait")} for line in lines]
            for lines in (read_lines(output, split), read_lines(straight, split))
        ]
        assert numbers[0] == numbers[1]


def check_killed_run(folder: Path, base: dict[str, Any], **options: Any) -> None:
    """A run that is killed after its fourth step and goes on ends with the same bits as one that was not."""
    train_tiny(folder / "straight", base, **options, checkpoint_steps=2)
    run = Run(folder / "killed", base=base, **options, checkpoint_steps=2)
    while not (folder / "killed" / "checkpoints" / "step-000000004").exists():
        assert run.process.is_alive()
        time.sleep(0.005)
    run.process.kill()
    run.process.join()
    assert run.process.exitcode == -9
    assert Run(folder / "killed", base=base, **options, checkpoint_steps=2, resume=True).wait() is None
    assert_same_run(folder / "killed", folder / "straight")


def test_killed_runs_end_with_the_same_weights(tmp_path, straight):
    output = tmp_path / "run"
    chance = random.Random(0)
    killed_at = []
    for _ in range(KILLS):
        known = set((output / "checkpoints").glob("step-*"))
        run = Run(output, resume=True, **LONG)
        # It gets past one checkpoint at least, then dies anywhere in the next few steps or while it saves.
        while not set((output / "checkpoints").glob("step-*")) - known and run.process.is_alive():
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.3))
        run.process.kill()
        run.process.join()
        killed_at.append(run.process.exitcode)
    assert set(killed_at) == {-9}, "a run ended before it was killed: make it longer"
    assert not (output / "model.safetensors").exists()
    assert Run(output, resume=True, **LONG).wait() is None
    assert_same_run(output, straight)
    assert not list((output / "checkpoints").glob("unfinished-*"))


def test_full_disk_costs_nothing_that_was_saved(tmp_path, straight):
    output = tmp_path / "run"
    run = Run(output, **LONG)
    while not (output / "checkpoints" / "step-000000002").exists():
        time.sleep(0.005)
    run.process.kill()
    run.process.join()
    before = sorted((output / "checkpoints").glob("step-*"))

    message = Run(output, resume=True, file_size=10_000, **LONG).wait()
    assert message.count("\n") == 0
    assert "cannot be written" in message
    assert "--resume" in message
    assert sorted((output / "checkpoints").glob("*")) == before
    assert not (output / "model.safetensors").exists()

    assert Run(output, resume=True, **LONG).wait() is None
    assert_same_run(output, straight)


def test_resume_of_a_finished_run_writes_the_same_model(tmp_path):
    output = tmp_path / "run"
    assert Run(output).wait() is None
    weights = (output / "model.safetensors").read_bytes()
    (output / "model.safetensors").unlink()
    assert Run(output, resume=True).wait() is None
    assert (output / "model.safetensors").read_bytes() == weights


def test_limit_keeps_the_newest_and_the_best(tmp_path):
    output = tmp_path / "run"
    # The rate is so high that the first evaluation stays the best one.
    assert Run(output, epochs=5, lr=3.0, warmup_steps=10, clip_grad_norm=1.0, checkpoint_limit=2).wait() is None
    accuracies = [line["accuracy"] for line in read_lines(output, "evaluation")]
    best = 6 * (1 + max(range(5), key=lambda epoch: accuracies[epoch]))
    kept = {int(path.name.removeprefix("step-")) for path in (output / "checkpoints").iterdir()}
    assert kept == {24, 30, best}


def test_resume_refuses_other_options(tmp_path):
    output = tmp_path / "run"
    assert Run(output, epochs=1).wait() is None
    message = Run(output, epochs=1, resume=True, batch_size=8).wait()
    assert "batch_size=16, not 8" in message
    message = Run(output, epochs=1, resume=True, model="deit_tiny_patch16_224", set={"patch_size": 4}).wait()
    assert "model=vit_tiny_patch16_224, not deit_tiny_patch16_224" in message


# Checkpoints that are damaged, copied, of another version, or cannot be deleted

SHORT = {"epochs": 2, "checkpoint_steps": 4, "max_steps": 12, "checkpoint_limit": 4, "log_steps": 3}


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """A run of twelve steps with checkpoints after 4, 6 (the best so far), 8 and 12."""
    output = tmp_path_factory.mktemp("short") / "run"
    assert Run(output, **SHORT).wait() is None
    return output


@pytest.fixture
def interrupted(short, tmp_path) -> Path:
    """The same, as if it had been killed before it wrote its model."""
    output = Path(shutil.copytree(short, tmp_path / "run"))
    for path in output.iterdir():
        if path.name not in ("checkpoints", "metrics.jsonl"):
            path.unlink()
    return output


def damage(path: Path, how: str) -> None:
    if how == "is missing":
        path.unlink()
    elif how == "is cut":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "is empty":
        path.write_bytes(b"")
    else:
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["objective", "average", "optimizer", "log", "progress"])
@pytest.mark.parametrize("how", ["is missing", "is cut", "is empty", "has a wrong bit"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(name, how, interrupted, short, capsys):
    newest = interrupted / "checkpoints" / "step-000000012"
    path = newest / ("progress.json" if name == "progress" else f"{name}.safetensors")
    damage(path, how)
    train_tiny(interrupted, resume=True, **SHORT)
    said = capsys.readouterr().out
    assert str(path) in said
    assert "trying the checkpoint before it" in said
    assert (newest.parent / f"damaged-{newest.name}").exists()
    assert_same_run(interrupted, short)


def test_without_a_whole_checkpoint_a_run_does_not_start_over(interrupted):
    for path in interrupted.glob("checkpoints/*/optimizer.safetensors"):
        damage(path, "has a wrong bit")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        train_tiny(interrupted, resume=True, **SHORT)
    assert len(list(interrupted.glob("checkpoints/step-*"))) == 4


def test_what_is_beside_checkpoints_does_not_stop_a_run(interrupted, short, monkeypatch, capsys):
    """Copies, files, leftovers of a killed run, and a checkpoint that cannot be deleted."""
    folder = interrupted / "checkpoints"
    shutil.copytree(folder / "step-000000012", folder / "step-000000036.bak")
    shutil.rmtree(folder / "step-000000012")
    (folder / "step-000000099").write_text("a file")
    (folder / "step-best").mkdir()
    for left in ("unfinished-step-000000012", "deleting-step-000000002"):
        shutil.copytree(folder / "step-000000008", folder / left)
    (folder / "step-000000008" / ".progress.json.unfinished-abcd1234").write_text("{")
    rename = os.rename

    def refuse(source, target):
        if Path(source).name == "step-000000004":
            raise PermissionError(13, "Permission denied", source)
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    train_tiny(interrupted, resume=True, **{**SHORT, "checkpoint_limit": 1})
    assert capsys.readouterr().out.count("step-000000004 cannot be deleted (Permission denied): the run goes on") == 1
    names = {path.name for path in folder.iterdir()}
    assert {"step-000000036.bak", "step-000000099", "step-best", "step-000000004", "step-000000012"} <= names
    assert not {name for name in names if name.startswith(("unfinished", "deleting"))}
    assert not list(folder.glob("step-000000008/.*"))
    assert_same_run(interrupted, short)


def test_checkpoints_of_another_version_are_not_read(interrupted):
    """Checkpoints of version 1 were pickles; nothing but their progress.json is opened."""
    for folder in interrupted.glob("checkpoints/step-*"):
        for path in folder.iterdir():
            path.unlink()
        (folder / "progress.json").write_text(json.dumps({"position": {"step": 12}, "identity": {}}))
        (folder / "custom_checkpoint_0.pkl").write_bytes(b"never read")
    with pytest.raises(
        UserError, match="written by another version of hf_vit_family, in a format that is not read here"
    ):
        train_tiny(interrupted, resume=True, **SHORT)


def test_the_best_checkpoint_that_is_gone_is_not_asked_for(interrupted, capsys):
    shutil.rmtree(interrupted / "checkpoints" / "step-000000012")
    progress = interrupted / "checkpoints" / "step-000000008" / "progress.json"
    best = json.loads(progress.read_text())["position"]["best_step"]
    shutil.rmtree(interrupted / "checkpoints" / f"step-{best:09d}", ignore_errors=True)
    train_tiny(interrupted, resume=True, final_weights="best", **SHORT)
    assert f"the best checkpoint, of step {best}, is gone" in capsys.readouterr().out


OPTIMIZERS = sorted(
    name
    for name, value in vars(torch.optim).items()
    if isinstance(value, type)
    and issubclass(value, torch.optim.Optimizer)
    and name not in ("Optimizer", "LBFGS", "SparseAdam")
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_with_the_same_bits(name, tmp_path):
    """Three steps, a checkpoint, three more in another optimiser whose parameters come in another order."""
    options = {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9, "centered": True}, "Adam": {"amsgrad": True}}
    accelerator = Accelerator(cpu=True)

    def make(order):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 3, bias=name != "Muon"), nn.Linear(3, 2, bias=False))
        groups = [{"params": [parameter]} for parameter in list(module.parameters())[::order]]
        return module, accelerator.prepare(make_optimizer(name, groups, 0.01, options.get(name, {})))

    def step(module, optimizer, number):
        torch.manual_seed(number)
        module(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    first, optimizer = make(1)
    for number in range(3):
        step(first, optimizer, number)
    checkpoints = Checkpoints(tmp_path, accelerator, 1)
    tensors, values = optimizer_state(accelerator, first, optimizer)
    checkpoints.save(
        3, {"optimizer": tensors, "objective": weights_state(accelerator, first)}, {"values": values}, None
    )
    second, other = make(-1)
    read = checkpoints.read(3)
    load_weights(accelerator, second, read["objective"])
    load_optimizer(accelerator, second, other, read["optimizer"], checkpoints.progress(3)["values"])
    for number in range(3, 6):
        step(first, optimizer, number)
        step(second, other, number)
    for one, same in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, same)


FORGERIES = {
    "another shape": lambda tensor: torch.zeros(*tensor.shape, 2, dtype=tensor.dtype),
    "another dtype": lambda tensor: tensor.to(torch.int64),
    "nan": lambda tensor: torch.full_like(tensor, float("nan")),
    "infinity": lambda tensor: torch.full_like(tensor, float("inf")),
    "nothing": lambda tensor: None,
}


@pytest.mark.parametrize("how", FORGERIES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_that_no_optimizer_of_the_run_has_are_refused(name, how):
    """Each tensor in turn, also where only one parameter has been trained so far."""
    accelerator = Accelerator(cpu=True)
    module = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    options = {"SGD": {"momentum": 0.9}}.get(name, {})
    optimizer = accelerator.prepare(make_optimizer(name, [{"params": list(module.parameters())}], 0.01, options))
    module[0](torch.randn(5, 4)).square().sum().backward()
    optimizer.step()
    tensors, values = optimizer_state(accelerator, module, optimizer)
    load_optimizer(accelerator, module, optimizer, tensors, values)
    assert tensors
    for key, tensor in tensors.items():
        forged = {**tensors, key: FORGERIES[how](tensor)}
        if forged[key] is None:
            del forged[key]
            if len(tensors) == 1:  # as if the parameter had had no gradient
                continue
        with pytest.raises(UserError, match=rf"optimizer holds {key}( as|, which is not finite)"):
            load_optimizer(accelerator, module, optimizer, forged, values)


def test_a_forged_checkpoint_with_right_checksums_is_one_line(interrupted):
    for folder in interrupted.glob("checkpoints/step-*"):
        path = folder / "optimizer.safetensors"
        tensors = safetensors.torch.load_file(path)
        key = next(name for name in tensors if name.endswith(".exp_avg"))
        safetensors.torch.save_file({**tensors, key: torch.zeros(1)}, path)
        progress = json.loads((folder / "progress.json").read_text())
        del progress["sha256"]
        progress["files"][path.name] = Checkpoints._facts(path)
        progress["sha256"] = _checksum(progress)
        (folder / "progress.json").write_text(json.dumps(progress))
    with pytest.raises(UserError, match=r"optimizer holds \S+\.exp_avg as \(1,\) of float32; it should be"):
        train_tiny(interrupted, resume=True, **SHORT)


def test_an_optimizer_that_remembers_something_else_is_refused():
    accelerator = Accelerator(cpu=True)
    module = nn.Linear(2, 1)
    optimizer = accelerator.prepare(torch.optim.LBFGS(module.parameters()))

    def closure():
        optimizer.zero_grad()
        loss = module(torch.ones(1, 2)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(UserError, match="optimizer LBFGS remembers a list"):
        optimizer_state(accelerator, module, optimizer)


def test_the_gradient_scaler_goes_on_where_it_was(tmp_path, monkeypatch):
    """Here it runs on the CPU, which Accelerate would not do: it doubles its scale every two steps."""

    def accelerator_with_scaler(**options):
        accelerator = Accelerator(**options)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        return accelerator

    monkeypatch.setattr("test_training.Accelerator", accelerator_with_scaler)

    def loop(objective):
        made = make_loop(objective, tmp_path / "run", max_steps=6, epochs=9, lr=1e-3)
        made.run_options.checkpoint_steps = 3
        (tmp_path / "run").mkdir(exist_ok=True)
        return made

    def objective():
        torch.manual_seed(0)
        return Counting(VitfVitForImageClassification(tiny_config("vit")))

    straight = loop(objective())
    straight.run()
    expected, states = straight.weights(), straight.accelerator.scaler.state_dict()
    for step in straight.checkpoints.steps()[1:]:
        shutil.rmtree(straight.checkpoints.folder / f"step-{step:09d}")
    resumed = loop(objective())
    resumed.run()
    assert resumed.accelerator.scaler.state_dict() == states
    assert states["scale"] > 4.0
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.weights().items())


def test_a_stream_goes_on_with_as_many_loader_processes(tmp_path):
    images = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(i) for i in range(10)])}
    )
    split = open_source("digits").open("train")
    for name, rows in (("train", range(96)), ("test", range(96, 120))):
        table = {"image": [split.read(i) for i in rows], "label": [int(split.labels[i]) for i in rows]}
        datasets.Dataset.from_dict(table, features=images).to_parquet(tmp_path / "data" / f"{name}.parquet")
    options = {
        "dataset": str(tmp_path / "data"),
        "streaming": True,
        "max_train_samples": None,
        "max_eval_samples": None,
    }
    options |= {"max_steps": 2, "shuffle_buffer": 10, "epochs": 1}
    train_tiny(tmp_path / "run", **options)
    with pytest.raises(UserError, match="was trained with num_workers=0, not 2"):
        train_tiny(tmp_path / "run", resume=True, **{**options, "num_workers": 2})


def test_shards_are_saved_as_the_whole_and_go_on_with_the_same_bits():
    """FSDP on one process: what it shards is a DTensor already."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, unwrap_model=lambda module: module)

        def make():
            torch.manual_seed(0)
            module = fully_shard(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), mesh=mesh)
            optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
            return module, SimpleNamespace(optimizer=optimizer, param_groups=optimizer.param_groups)

        def train_steps(module, optimizer, numbers):
            for number in numbers:
                torch.manual_seed(number)
                module(torch.randn(5, 4)).square().sum().backward()
                optimizer.optimizer.step()
                optimizer.optimizer.zero_grad()

        first, optimizer = make()
        train_steps(first, optimizer, range(3))
        weights, state = weights_state(accelerator, first), optimizer_state(accelerator, first, optimizer)
        assert {name: tuple(tensor.shape) for name, tensor in weights.items()}["0.weight"] == (3, 4)
        assert not any(isinstance(tensor, DTensor) for tensor in (*weights.values(), *state[0].values()))
        second, other = make()
        load_weights(accelerator, second, weights)
        load_optimizer(accelerator, second, other, *state)
        train_steps(first, optimizer, range(3, 6))
        train_steps(second, other, range(3, 6))
        for one, same in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(one.to_local(), same.to_local())
        assert first_not_finite(first.named_parameters()) is None
        with torch.no_grad():
            first[1].weight.to_local()[0, 0] = float("inf")
        assert first_not_finite(first.named_parameters()) == "1.weight"
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2, "batch_size": 8},
        {"layer_decay": 0.7, "clip_grad_norm": 1.0},
        {"freeze": "backbone", "optimizer": "SGD"},
        {"lora_rank": 2},
        {"mixed_precision": "bf16", "gradient_checkpointing": True},
        {"repeated_augmentation": 2, "ema_decay": None},
        {"model": "levit_128s", "set": {"patch_size": 4, "hidden_sizes": [32, 32, 32], "depths": [1, 1, 1]}},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_kind_of_run_goes_on_with_the_same_bits(options, tmp_path):
    """From the middle of an epoch, between two lines of metrics."""
    options = {"max_steps": 4, "checkpoint_steps": 2, "log_steps": 3, **options}
    if "model" in options:
        options |= {"set": {**options["set"], "num_heads": [1, 1, 1]}, "image_size": 16, "drop_path_rate": None}
    train_tiny(tmp_path / "straight", **options)
    output = Path(shutil.copytree(tmp_path / "straight", tmp_path / "run"))
    shutil.rmtree(output / "checkpoints" / "step-000000004")
    (output / "model.safetensors").unlink()
    train_tiny(output, resume=True, **options)
    assert_same_run(output, tmp_path / "straight")


def forge(folder: Path, **changes) -> None:
    """Changes what a checkpoint says, and its checksum with it."""
    path = folder / "progress.json"
    values = {**json.loads(path.read_text()), **changes}
    values.pop("sha256")
    path.write_text(json.dumps({**values, "sha256": _checksum(values)}))


@pytest.mark.parametrize("key", ["files", "identity", "position", "optimizer", "log_steps", "average_updates"])
def test_a_checkpoint_that_says_something_else_is_one_line(key, interrupted):
    for folder in interrupted.glob("checkpoints/step-*"):
        forge(folder, **{key: [1]})
    with pytest.raises(UserError, match=r"does not hold what this run needs|does not name the files|is whole"):
        train_tiny(interrupted, resume=True, **SHORT)


def test_a_checkpoint_reads_no_file_outside_of_it(interrupted, tmp_path):
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "elsewhere.safetensors")
    for folder in interrupted.glob("checkpoints/step-*"):
        forge(folder, files={"../../../elsewhere.safetensors": {"bytes": 72, "sha256": ""}})
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        train_tiny(interrupted, resume=True, **SHORT)


@pytest.mark.parametrize("name", ["objective", "average"])
@pytest.mark.parametrize("change", ["a name less", "a name more", "another shape", "another dtype"])
def test_tensors_of_another_model_are_one_line(name, change, interrupted):
    for folder in interrupted.glob("checkpoints/step-*"):
        path = folder / f"{name}.safetensors"
        tensors = safetensors.torch.load_file(path)
        key = next(key for key in tensors if key.endswith("classifier.bias"))
        bias = tensors.pop(key)
        if change != "a name less":
            shown = {"a name more": bias, "another shape": bias[:3].clone(), "another dtype": bias.double()}[change]
            tensors |= {key: shown} | ({"more": bias.clone()} if change == "a name more" else {})
        safetensors.torch.save_file(tensors, path)
        forge(
            folder,
            files={**json.loads((folder / "progress.json").read_text())["files"], path.name: Checkpoints._facts(path)},
        )
    with pytest.raises(UserError, match=r"of another architecture: '(more|.*classifier.bias)' differs, and 0 more"):
        train_tiny(interrupted, resume=True, **SHORT)

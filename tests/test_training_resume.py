"""Checkpoints: a run that is killed, or runs out of disk, goes on as if nothing had happened."""

import os
import random
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from training_runs import Run, read_lines

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
    assert_same_tensors(ours / "objective.safetensors", theirs / "objective.safetensors")
    for name in ("optimizer.bin", "custom_checkpoint_0.pkl"):
        first, second = (torch.load(folder / name, weights_only=True) for folder in (ours, theirs))
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    for split in ("train", "evaluation"):
        numbers = [
            [{k: v for k, v in line.items() if k not in ("images_per_second", "data_wait")} for line in lines]
            for lines in (read_lines(output, split), read_lines(straight, split))
        ]
        assert numbers[0] == numbers[1]


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

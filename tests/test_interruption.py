"""
Runs that are ended from outside: by signals, which they answer with a checkpoint, and by kills, which they outlive.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml
from kill_trial import trial
from test_training_resume import assert_same_run
from training_runs import TINY_RUN, Run, train_tiny

from hf_vit_family.data.image_sets import EvaluationImages
from hf_vit_family.training.stopping import Interrupted, StopRequest, StopRequested

# Of several epochs, with checkpoints that are due far apart.
LONG = {"epochs": 100, "checkpoint_steps": 1000, "max_steps": 24}


def wait_for(condition, seconds: float = 300.0) -> None:
    """Until a condition holds."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "what was waited for did not come"
        time.sleep(0.01)


def lines(output: Path) -> int:
    path = output / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


HELD_COMMAND = Path(__file__).with_name("held_command.py")


class Command:
    """`vit-family train` as a user starts it, in a process group of its own. `hold`: until a signal ends it."""

    def __init__(self, output: Path, hold: bool = False, **options):
        recipe = output.parent / f"{output.name}.yaml"
        recipe.write_text(yaml.safe_dump({**TINY_RUN, **options, "output": str(output)}))
        self.process = subprocess.Popen(
            [sys.executable, HELD_COMMAND, "train", "--recipe", str(recipe), "--resume"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HOLD_TRAINING": "1" if hold else ""},  # as in `Run`
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell starts what it runs in the background with SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def end(self) -> tuple[int, str]:
        """Exit code, and what it said on standard error; nothing of its group may be left."""
        _, said = self.process.communicate(timeout=300)
        wait_for(lambda: not group(self.process.pid))
        return self.process.returncode, said


def group(leader: int) -> list[psutil.Process]:
    """The living processes of a group."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """The output of a run that nobody disturbed."""
    output = tmp_path_factory.mktemp("straight") / "run"
    assert Run(output, **LONG).wait() is None
    return output


@pytest.mark.parametrize("to", ["the run", "the whole group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_answered_with_a_checkpoint(number, to, tmp_path, straight):
    output = tmp_path / "run"
    run = Command(output, hold=True, num_workers=2, **LONG)
    wait_for(lambda: lines(output) >= 2)
    (os.killpg if to == "the whole group" else os.kill)(run.process.pid, number)
    code, said = run.end()
    assert code == 128 + number, said
    (checkpoint,) = (output / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    last = said.strip().splitlines()[-1]
    assert last == (
        f"vit-family train: {number.name} ended the run after step {step} of 24, which has a checkpoint in "
        f"{output / 'checkpoints'}: go on with --resume"
    )
    assert "Traceback" not in said
    assert not list(output.glob(".*"))
    assert Run(output, resume=True, **LONG).wait() is None
    assert_same_run(output, straight)


def test_a_signal_during_an_evaluation_does_not_wait_for_it(tmp_path, monkeypatch, straight):
    """The signal comes with the first batch of the evaluation of the last epoch."""
    get, seen = EvaluationImages.__getitem__, []

    def get_and_signal(images, index):
        seen.append(index)
        os.kill(os.getpid(), signal.SIGTERM)
        return get(images, index)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(EvaluationImages, "__getitem__", get_and_signal)
        with pytest.raises(Interrupted, match="after step 6 of 24") as stopped:
            train_tiny(output, eval_batch_size=1, **LONG)
    assert stopped.value.exit_code == 143
    assert len(seen) <= 2
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert Run(output, resume=True, **LONG).wait() is None
    assert_same_run(output, straight)


@pytest.mark.parametrize("to", ["the parent", "one process", "all"])
def test_two_processes_end_together_and_go_on_together(to, tmp_path):
    number = {"the parent": signal.SIGINT, "one process": signal.SIGTERM, "all": signal.SIGINT}[to]
    output, options = tmp_path / "run", {**LONG, "batch_size": 8, "num_processes": 2}
    run = Command(output, hold=True, **options)
    wait_for(lambda: lines(output) >= 2)
    workers = [
        child for child in psutil.Process(run.process.pid).children() if "spawn_main" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2
    listening = [c for worker in workers for c in worker.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert {connection.laddr.ip for connection in listening} <= {"127.0.0.1", "::1"}
    if to == "all":
        os.killpg(run.process.pid, number)
    else:
        os.kill(run.process.pid if to == "the parent" else workers[1].pid, number)
    code, said = run.end()
    assert code == 128 + number, said
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"vit-family train: {number.name} ended the run after step ")
    assert last.endswith("go on with --resume")
    assert "Traceback" not in said
    assert len(list((output / "checkpoints").iterdir())) == 1
    if to == "the parent":
        assert Command(output, **options).end()[0] == 0
        assert Command(tmp_path / "straight", **options).end()[0] == 0
        assert_same_run(output, tmp_path / "straight")


def test_a_mistake_in_two_processes_is_one_line(tmp_path):
    code, said = Command(tmp_path / "run", num_processes=2, optimizer="Adan").end()
    assert code == 2
    assert [line for line in said.splitlines() if "unknown optimizer" in line] == said.strip().splitlines()[-1:]
    assert "Traceback" not in said


def test_killed_runs_end_with_the_same_bits(tmp_path):
    """A few of the thousand points of `make kill-trial`."""
    line, wrong = trial(6, 1, tmp_path)
    assert not wrong
    assert line.endswith("6 ended with the same bits")


def test_a_signal_that_comes_while_processes_agree_is_heard_at_the_next_check(monkeypatch):
    """What they agreed on does not hold it, and the others would go on without the one that obeyed it at once."""
    signals = iter([signal.SIGTERM, 0])

    def agree(number, *_, **__):
        if due := next(signals):
            os.kill(os.getpid(), due)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    monkeypatch.setattr(torch.distributed, "all_reduce", agree)
    with StopRequest(SimpleNamespace(is_main_process=False)) as stop:
        stop.check()
        with pytest.raises(StopRequested):
            stop.check()
    assert stop.number == signal.SIGTERM

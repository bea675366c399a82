"""
Kills training runs at points that are spread over everything they do, resumes them, and compares what they end with,
bit for bit, with a run that nobody killed.

  python tests/kill_trial.py --points 1000

A point is one of: an event of a run (before it opens, renames, deletes a file of its output or begins a step; in the
middle of a file of tensors), a random moment, and a random moment of a run of two processes, which are killed together.
Every third run is killed again while it resumes.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tqdm import tqdm
from training_runs import PROCESSES, TINY_RUN

from hf_vit_family.training.launch import launch
from hf_vit_family.training.loop import TrainingLoop
from hf_vit_family.training.run import TrainingOptions, train

# Two epochs of four steps, a checkpoint every other step, lines of metrics that do not fall on checkpoints.
SHORT_RUN = {
    **TINY_RUN,
    "max_train_samples": 64,
    "max_eval_samples": 20,
    "epochs": 2,
    "checkpoint_steps": 2,
    "log_steps": 3,
}
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod")
TIMES = ("images_per_second", "data_wait")


class Countdown:
    """Counts the events of this process that concern a folder, and kills it at one of them."""

    def __init__(self, folder: Path, last: int | None):
        self.folder = str(folder)
        self.last = last
        self.count = 0
        sys.addaudithook(self._hear)
        self._save, self._step = safetensors.torch.save_file, TrainingLoop.step
        safetensors.torch.save_file = self._save_and_count

        def step(loop, batches):
            self._tick()
            return self._step(loop, batches)

        TrainingLoop.step = step

    def _hear(self, event: str, arguments: tuple) -> None:
        if event in EVENTS and str(arguments[0]).startswith(self.folder):
            self._tick()

    def _save_and_count(self, tensors, path, *args, **kwargs) -> None:
        self._save(tensors, path, *args, **kwargs)
        if self.count + 1 == self.last:
            os.truncate(path, os.path.getsize(path) // 2)
        self._tick()

    def _tick(self) -> None:
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def _run(output: Path, last: int | None, processes: int, count) -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    torch.set_num_threads(1)
    values = {**SHORT_RUN, "output": str(output), "resume": True}
    if processes > 1:
        values["batch_size"] //= processes
        launch(values, "vit-family train", processes)
        return
    countdown = Countdown(output, last)
    train(TrainingOptions.from_values(values), "vit-family train")
    count.put(countdown.count)


@dataclass(frozen=True)
class Point:
    """The point where a run is killed: at an event or after some seconds; again at `again` events of its resumption."""

    event: int | None = None
    seconds: float | None = None
    again: int | None = None
    processes: int = 1


def run_to(output: Path, event: int | None = None, seconds: float | None = None, processes: int = 1) -> int | None:
    """Trains until the end, which must be a good one, and returns how many events there were; or until it is killed."""
    count = PROCESSES.SimpleQueue()
    process = PROCESSES.Process(target=_run, args=(output, event, processes, count))
    process.start()
    if seconds is not None:
        process.join(seconds)
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has ended, or has no group of its own yet
            process.kill()
    process.join(600)
    if process.exitcode not in (0, -signal.SIGKILL) or (process.exitcode and event is None and seconds is None):
        raise RuntimeError(f"{output}: a run ended with exit code {process.exitcode}")
    return None if process.exitcode or processes > 1 else count.get()


def result(output: Path) -> dict[str, Any]:
    """Reads what must be equal: final weights, the last checkpoint, and every number that was logged but times."""
    found: dict[str, Any] = {}
    last = sorted((output / "checkpoints").glob("step-*"))[-1]
    for path in (output / "model.safetensors", *sorted(last.glob("*.safetensors"))):
        found |= {f"{path.name}: {name}": tensor for name, tensor in safetensors.torch.load_file(path).items()}
    for number, line in enumerate((output / "metrics.jsonl").read_text().splitlines()):
        found[f"line {number}"] = {name: value for name, value in json.loads(line).items() if name not in TIMES}
    found["left over"] = sorted(
        path.name for folder in (output, last.parent) for path in folder.iterdir() if not path.name.startswith("step-")
    )
    return found


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """The keys of two results whose values are not the same bits."""

    def same(one, other) -> bool:
        return torch.equal(one, other) if torch.is_tensor(one) and torch.is_tensor(other) else one == other

    return [
        key for key in {**first, **second} if key not in first or key not in second or not same(first[key], second[key])
    ]


def points(number: int, events: int, seconds: float, chance: random.Random) -> list[Point]:
    """Of every 50 points, one is of two processes, four are random moments, and the rest are events, evenly spread."""
    kinds = ["two" if i % 50 == 49 else "moment" if i % 12 == 5 else "event" for i in range(number)]
    spread = iter(range(kinds.count("event")))
    made = []
    for i, kind in enumerate(kinds):
        again = chance.randrange(1, events) if i % 3 == 2 else None
        if kind == "event":
            made.append(Point(event=1 + next(spread) * events // kinds.count("event"), again=again))
        elif kind == "moment":
            made.append(Point(seconds=chance.uniform(0, seconds), again=again))
        else:
            made.append(Point(seconds=chance.uniform(0, 25), processes=2))
    return made


def trial(number: int, jobs: int, folder: Path, progress: bool = False) -> tuple[str, list[str]]:
    """
    Kills and resumes that many runs, so many at a time.

    Returns:
        One line that says what was done and came out, and a line for each run that came out differently.
    """
    began = time.monotonic()
    events = run_to(folder / "straight")
    seconds = time.monotonic() - began
    chosen = points(number, events, seconds, random.Random(0))
    expected = {1: result(folder / "straight")}
    if any(point.processes == 2 for point in chosen):
        run_to(folder / "straight_two", processes=2)
        expected[2] = result(folder / "straight_two")

    def attempt(index: int) -> str | None:
        point, output = chosen[index], folder / str(index)
        try:
            run_to(output, point.event, point.seconds, point.processes)
            if point.again is not None:
                run_to(output, point.again)
            run_to(output, processes=point.processes)
            wrong = differences(result(output), expected[point.processes])
        except RuntimeError as error:
            return f"{point}: {error}"
        return f"{point}: {', '.join(wrong[:3])} and {len(wrong)} in all differ" if wrong else None

    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(tqdm(pool.map(attempt, range(number)), total=number, unit="run", disable=not progress))
    wrong = [outcome for outcome in outcomes if outcome is not None]
    two, moments = (
        sum(test(p) for p in chosen) for test in (lambda p: p.processes == 2, lambda p: p.seconds is not None)
    )
    line = (
        f"{number} runs killed ({number - moments} at events of the {events} that a run has, {moments - two} at random "
        f"moments, {two} of two processes; {sum(p.again is not None for p in chosen)} of them twice): "
        f"{number - len(wrong)} ended with the same bits"
    )
    return line, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1000, help="how many runs are killed (default: 1000)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time (default: one a core)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        line, wrong = trial(args.points, args.jobs, Path(folder), progress=True)
    for outcome in wrong:
        print(outcome)
    print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

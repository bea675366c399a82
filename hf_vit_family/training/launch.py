"""Several training processes on this machine, from one command."""

import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import multiprocessing

from ..errors import UserError
from ..hub import bound_requests
from .stopping import SIGNALS, Interrupted

# Seconds that processes have to end by themselves after a signal: a checkpoint of a large model takes its time.
PATIENCE = 600.0
# How processes are started: what has used CUDA cannot be forked.
PROCESSES = multiprocessing.get_context("spawn")


def _loopback() -> str:
    """The name of the network interface that only this machine can reach."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name.startswith("lo")), "lo")


def _end_with_the_parent() -> None:
    """Asks this process to end, as SIGTERM does, once the process that started it is gone."""
    parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _work(
    process: int, values: dict[str, Any], command: str, recipe: str | None, processes: int, store: str, said: Connection
) -> None:
    """One process of the run. What a user should know leaves through `said`, as an exit code and a line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent passes it on
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    bound_requests()
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    loopback = _loopback()
    os.environ.update(
        RANK=str(process),
        LOCAL_RANK=str(process),
        WORLD_SIZE=str(processes),
        LOCAL_WORLD_SIZE=str(processes),
        GLOO_SOCKET_IFNAME=loopback,
        NCCL_SOCKET_IFNAME=loopback,
    )
    if not on_cpu:
        torch.cuda.set_device(process)
    # The processes find each other through a file: a store on a port would listen to the whole network.
    torch.distributed.init_process_group(
        "gloo" if on_cpu else "nccl",
        store=torch.distributed.FileStore(store, processes),
        rank=process,
        world_size=processes,
    )
    from .run import TrainingOptions, train

    try:
        train(TrainingOptions.from_values(values), command, recipe)
    except UserError as error:
        said.send_bytes(f"2 {error}".encode())
        # The others are ended before they see that this one is gone, and complain.
        time.sleep(PATIENCE)
        sys.exit(2)
    except Interrupted as stopped:
        said.send_bytes(f"{stopped.exit_code} {stopped}".encode())
        sys.exit(stopped.exit_code)


def launch(values: dict[str, Any], command: str, processes: int, recipe: str | None = None) -> None:
    """
    `train` in several processes: one for each GPU where there are GPUs, else sharing the CPU's cores.

    Args:
        values: Options by name. command, recipe: As `train` takes them.

    Raises:
        UserError: the first process's, or if there are fewer GPUs than processes.
        Interrupted: after SIGTERM or SIGINT, which all processes are told of.
    """
    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        raise UserError(f"num_processes={processes}, but this machine has {gpus} GPUs")
    received: list[int] = []
    workers: list[multiprocessing.Process] = []

    def tell_workers(number: int, _: FrameType | None) -> None:
        if number in received and number == signal.SIGINT:  # a second Ctrl-C
            _kill(workers)
        received.append(number)
        for worker in workers:
            if worker.is_alive():
                worker.terminate()

    with tempfile.TemporaryDirectory() as folder, _handlers(tell_workers), _quiet_tracker():
        pipes = [PROCESSES.Pipe(duplex=False) for _ in range(processes)]
        try:
            for number, (_, said) in enumerate(pipes):
                arguments = (number, values, command, recipe, processes, str(Path(folder, "store")), said)
                workers.append(PROCESSES.Process(target=_work, args=arguments))
                workers[-1].start()
                said.close()  # this process's copy
            for number in received[:1]:  # while they were started
                tell_workers(number, None)
            line = _wait(workers, [heard for heard, _ in pipes], received)
        finally:
            _kill(workers)
    codes = [worker.exitcode for worker in workers]
    if not any(codes):
        return
    code, _, text = (line or "").partition(" ")
    if code == "2":
        raise UserError(text)
    if received or code:
        number = received[0] if received else int(code) - 128
        text = text.replace(signal.SIGTERM.name, signal.Signals(number).name)  # which is what they were told
        raise Interrupted(text or f"{signal.Signals(number).name} ended the run before its first step", number)
    failed = next(rank for rank, code in enumerate(codes) if code)
    raise RuntimeError(f"process {failed} of {processes} ended with exit code {codes[failed]}; what it said is above")


@contextlib.contextmanager
def _quiet_tracker() -> Iterator[None]:
    """Python's tracker of semaphores warns of those that killed processes leave, and removes them: nobody need know."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (before, "ignore:resource_tracker:UserWarning")))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


@contextlib.contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside this context a handler hears of SIGTERM and SIGINT."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _wait(workers: list[multiprocessing.Process], heard: list[Connection], received: list[int]) -> str | None:
    """Waits until all processes have ended or one has failed, and returns what the first one says."""
    line, ends = None, None
    while alive := [worker for worker in workers if worker.is_alive()]:
        ready = connection.wait([*(worker.sentinel for worker in alive), *heard], timeout=1.0)
        for pipe in [pipe for pipe in heard if pipe in ready]:
            line = line or _receive(pipe)
            heard.remove(pipe)
        if received and ends is None:
            ends = time.monotonic() + PATIENCE
        failed = any(
            worker.exitcode and worker.exitcode not in (128 + number for number in SIGNALS) for worker in workers
        )
        if (line or "").startswith("2 ") or (failed and not received) or (ends and time.monotonic() > ends):
            break
    for pipe in heard:
        line = line or (_receive(pipe) if pipe.poll() else None)
    return line


def _receive(pipe: Connection) -> str | None:
    """Reads what a process says, which it does once; None if it ended in silence."""
    try:
        return pipe.recv_bytes().decode()
    except EOFError:
        return None


def _kill(workers: list[multiprocessing.Process]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()
    for worker in workers:
        worker.join()

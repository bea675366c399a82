"""Several training processes on this machine, from one command."""

import os
import socket
from typing import Any

import torch
from torch import multiprocessing

from ..errors import UserError


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _work(process: int, values: dict[str, Any], command: str, processes: int, port: int, on_cpu: bool, errors) -> None:
    """One process of the run. A user's mistake leaves through `errors`, and ends the others."""
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    os.environ.update(
        RANK=str(process),
        LOCAL_RANK=str(process),
        WORLD_SIZE=str(processes),
        LOCAL_WORLD_SIZE=str(processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    from .run import TrainingOptions, train

    try:
        train(TrainingOptions.from_values(values), command)
    except UserError as error:
        errors.put(str(error))
        raise SystemExit(2) from error


def launch(values: dict[str, Any], command: str, processes: int) -> None:
    """
    `train` in several processes: one for each GPU where there are GPUs, else sharing the CPU's cores.

    Args:
        values: Options by name. command: As `train` takes it.

    Raises:
        UserError: the first process's, or if there are fewer GPUs than processes.
    """
    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        raise UserError(f"num_processes={processes}, but this machine has {gpus} GPUs")
    errors = multiprocessing.get_context("spawn").SimpleQueue()
    arguments = (values, command, processes, _free_port(), not gpus, errors)
    try:
        multiprocessing.spawn(_work, args=arguments, nprocs=processes)
    except multiprocessing.ProcessExitedException as failure:
        if failure.exit_code == 2 and not errors.empty():
            raise UserError(errors.get()) from None
        raise

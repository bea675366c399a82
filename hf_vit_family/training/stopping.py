"""Ending a run from outside: SIGTERM, as schedulers send it, and SIGINT, which is Ctrl-C."""

import os
import signal
import threading
from types import FrameType

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """
    A run that was asked to end. The message says how to go on.

    Args:
        number: The signal; the exit code of the command is 128 more.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number

    @property
    def exit_code(self) -> int:
        return 128 + self.number


class StopRequested(Exception):
    """Raised between two steps, where a checkpoint can be written."""


class StopRequest:
    """
    Inside this context SIGTERM and SIGINT are noted instead of obeyed. A second SIGINT is obeyed.

    Args:
        accelerator: Its processes agree at each `check`: a signal to one of them ends all of them at the same step.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.number = 0  # of the signal
        self._before: dict[int, object] = {}
        self._group = None

    def __enter__(self) -> "StopRequest":
        if torch.distributed.is_initialized() and torch.distributed.get_backend() != "gloo":
            # Agreement over the network of the processors: the accelerators' queues need not run empty for it.
            self._group = torch.distributed.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if (
                    signal.getsignal(number) is not signal.SIG_IGN
                ):  # as the shell wants it for what runs in the background
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number:
            raise KeyboardInterrupt
        self.number = self.number or number
        if self.accelerator.is_main_process:
            name = signal.Signals(number).name
            # print is not safe in a signal's handler.
            os.write(2, f"\n{name}: the run ends after this step, with a checkpoint\n".encode())

    def check(self) -> None:
        """
        Raises StopRequested, in all processes, if one of them was asked to end. All call it, as often as each other.
        """
        agreed = torch.tensor(self.number)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX, group=self._group)
        # A signal that came meanwhile is in `self.number`, but not in what was agreed on: it waits for the next check.
        if agreed:
            self.number = int(agreed)
            raise StopRequested


def leave_signals_to_the_parent(worker: int) -> None:
    """
    For the processes of a loader: signals that reach the whole group do not end them, since the run needs them until it
    has ended its step. One that its parent wants to be rid of has half a minute.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))

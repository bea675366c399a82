"""Fixtures that several suites use."""

import os

import pytest
import torch
from hub_server import HubServer

# Tiny models gain nothing from threads, and several test processes share the cores; sub-processes inherit the variable.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def hub():
    """A stand-in for the Hub; its `environment` belongs to the processes that talk to it."""
    with HubServer() as server:
        yield server

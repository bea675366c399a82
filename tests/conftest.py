"""Fixtures that several suites use."""

import gc
import os

import pytest
import torch
from hub_server import HubServer

# Tiny models gain nothing from threads, and several test processes share the cores; sub-processes inherit the variable.
# OMP_NUM_THREADS=2 runs the suite with two threads.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))

# The modules, and in the contract the cases, whose tests answer within about two minutes together on two cores.
FAST_MODULES = {
    "test_folders.py",
    "test_goldens.py",
    "test_layer_groups.py",
    "test_parameter_counts.py",
    "test_readme.py",
    "test_repo.py",
}
FAST_CASES = {"vit"}
COMPILING = {"test_compiled_equals_eager", "test_onnx_equals_eager", "test_onnx_of_export_at_other_sizes"}


def pytest_collection_modifyitems(items):
    """Marks every test as `fast` or as `slow`."""
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        of_fast_case = item.path.name == "test_contract.py" and not FAST_CASES.isdisjoint(
            value for value in parameters if isinstance(value, str)
        )
        fast = (item.path.name in FAST_MODULES or of_fast_case) and item.originalname not in COMPILING
        item.add_marker(pytest.mark.fast if fast else pytest.mark.slow)


def pytest_collection_finish():
    """What is there before the first test stays: the garbage collector need not look through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def hub():
    """A stand-in for the Hub; its `environment` belongs to the processes that talk to it."""
    with HubServer() as server:
        yield server

"""Fixtures that several suites use."""

import pytest
from hub_server import HubServer


@pytest.fixture(scope="module")
def hub():
    """A stand-in for the Hub; its `environment` belongs to the processes that talk to it."""
    with HubServer() as server:
        yield server

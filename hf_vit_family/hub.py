"""Asks the Hub: for which revision of a repository, whether its code may run, and how long it waits for an answer."""

import os
import time
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import logging
from huggingface_hub.utils._http import default_client_factory

from .errors import UserError
from .notices import notice

# What the options of all commands say.
REVISION_HELP = "branch, tag or commit of the model on the Hub; its default branch by default"
TRUST_REMOTE_CODE_HELP = (
    "run Python code that comes with a model; read it first, and give the commit that you read as revision"
)

# Seconds for the Hub to take what is sent and to answer: a commit of many files takes it a while.
SENDING_TIMEOUT = 60.0
# A host that has not answered for so many time-outs is not asked again.
PATIENCE = 3


class HubSilentError(OfflineModeIsEnabled):
    """
    A host has not answered for so long that the rest goes on as without a network: from the cache, if it is there.
    """


def check_revision(option: str, revision: str | None, name: str, on_hub: bool) -> None:
    """
    Args:
        option: The option that gives the revision. name: What it is meant to be of. on_hub: Whether that is on the Hub.

    Raises:
        UserError: for a revision of something that has none, which would be read as it is.
    """
    if revision is not None and not on_hub:
        raise UserError(f"{option} {revision}: {name} is not read from the Hub, so that it has no revisions")


class _Patience:
    """
    Gives every request a time-out, and refuses those to a host that answers none.

    huggingface_hub's client waits for ever by default, and some calls ask for that. Where there are time-outs it tries
    up to seven times, for each of a model's files.
    """

    def __init__(self):
        self.timeout = float(max(constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT))
        # Host: times of the oldest and the newest request since its last answer.
        self.waiting: dict[str, tuple[float, float]] = {}
        self.told: set[str] = set()

    def ask(self, request: Any) -> None:
        """A hook for each request, of httpx or httpx2, before it is sent."""
        sends = request.method not in ("GET", "HEAD")
        limit = max(self.timeout, SENDING_TIMEOUT) if sends else self.timeout
        given = request.extensions.get("timeout", {})
        limits = {name: min(limit, given.get(name) or limit) for name in ("connect", "read", "write")}
        request.extensions["timeout"] = {**given, **limits}
        if request.method == "PUT":  # of a large file, which says nothing of the host
            return
        host, now = urlsplit(str(request.url)).netloc, time.monotonic()
        first, last = self.waiting.get(host, (now, now))
        if now - last > PATIENCE * self.timeout + SENDING_TIMEOUT:  # much has happened since: ask anew
            first = now
        if now - first >= PATIENCE * self.timeout:
            raise HubSilentError(f"{host} has not answered for {now - first:.0f} s")
        if now - first >= self.timeout / 2 and host not in self.told:
            self.told.add(host)
            notice(f"{host} has not answered so far: trying again")
        self.waiting[host] = (first, now)

    def answer(self, response: Any) -> None:
        """A hook for each response."""
        self.waiting.pop(urlsplit(str(response.request.url)).netloc, None)


def bound_requests() -> None:
    """
    Bounds the time that huggingface_hub, and what uses it, waits for an answer in this process. HF_HUB_DOWNLOAD_TIMEOUT
    and HF_HUB_ETAG_TIMEOUT, in seconds, say for how long.
    """
    if "HF_HUB_VERBOSITY" not in os.environ:  # a warning for each of many tries
        logging.set_verbosity_error()
    patience = _Patience()

    def make_client() -> Any:
        client = default_client_factory()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], patience.ask],
            "response": [*hooks["response"], patience.answer],
        }
        return client

    set_client_factory(make_client)

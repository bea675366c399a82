"""Tells in one line what the machine, the network or the Hub refuses. None of it is a fault of this library."""

import errno
import os
import pickle
import re
from collections.abc import Iterator

import torch
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError

from .hub import HubSilentError

# The base of what the HTTP client raises: httpx or httpx2, by the version of huggingface_hub.
HttpError: type[Exception] = HfHubHTTPError.__bases__[0]

# Errors of a Hub's answer by class, and by status. A repository that a user may not see is answered as one that is not
# there.
_BY_CLASS = {
    GatedRepoError: "the model is gated: ask for access on its page, then run 'hf auth login' or set HF_TOKEN",
    DisabledRepoError: "the Hub has disabled this repository",
    RepositoryNotFoundError: (
        "the Hub has no such repository, or it is private: check the name, then run 'hf auth login' or set HF_TOKEN"
    ),
    RevisionNotFoundError: "the repository has no such revision",
    HubSilentError: "the Hub did not answer in time",
    OfflineModeIsEnabled: "the Hub is not asked, because HF_HUB_OFFLINE is set",
}
_BY_STATUS = {
    401: "the Hub does not take the access token (401): run 'hf auth login' or set HF_TOKEN",
    403: "the access token may not do this (403): the owner must allow it, or the token must be one that may write",
    404: "the Hub has no such repository or file (404)",
    429: "the Hub has had too many requests (429): wait some minutes, and try again",
}
# What from_pretrained raises for files that are missing, damaged, of another kind, or not on the Hub.
LOADING_ERRORS: tuple[type[Exception], ...] = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError),
    *(SafetensorError, StrictDataclassError, HttpError),
)
# A disk that is full or broken, a quota, a largest size of files.
_WRITING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


def hub_reason(error: BaseException) -> str | None:
    """Why a call to the Hub failed, in one line; None for an error of another kind."""
    for each in _chain(error):
        for kind, reason in _BY_CLASS.items():
            if isinstance(each, kind):
                return reason
        status = getattr(getattr(each, "response", None), "status_code", None)
        if isinstance(each, HttpError) and status is not None:
            if status >= 500:
                return f"the Hub has a fault of its own ({status}): try again later"
            return _BY_STATUS.get(status) or f"the Hub refused it: {_first_line(each)}"
        if isinstance(each, HttpError):
            slow = "Timeout" in type(each).__name__  # a class for each phase of a request
            return "the Hub did not answer in time" if slow else f"the Hub cannot be reached ({_first_line(each)})"
    if isinstance(error, LocalEntryNotFoundError):
        return "it is not in the cache, and the Hub cannot be reached"
    return None


def loading_reason(error: BaseException) -> str:
    """Why something could not be loaded, in one line: transformers' messages go on for a screen."""
    if isinstance(error, StrictDataclassError):  # which names the field in its second line
        return " ".join(str(error).split())
    return hub_reason(error) or _first_line(error)


def writing_reason(error: BaseException) -> str | None:
    """Why a file could not be written, such as a full disk; None for an error of another kind."""
    for each in _chain(error):
        number = each.errno if isinstance(each, OSError) else None
        if isinstance(each, SafetensorError) and (found := re.search(r"\(os error (\d+)\)", str(each))):
            number = int(found[1])
        if number in _WRITING:
            return os.strerror(number)
        if isinstance(each, RuntimeError) and re.search(r"PytorchStreamWriter|inline_container", str(each)):
            return "a write failed; is the disk full?"
    return None


def refusal(error: BaseException) -> str | None:
    """One line for an error that a user can mend though nothing foresaw it; None for a fault of this library."""
    if (reason := hub_reason(error)) is not None:
        return reason
    if (reason := writing_reason(error)) is not None:
        name = getattr(error, "filename", None)
        return f"{name or 'a file'} cannot be written: {reason}"
    if isinstance(error, OSError):
        if error.errno is None:  # raised with a sentence of its own, by transformers among others
            return _first_line(error)
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part is not None)
    if isinstance(error, SafetensorError):
        return f"a .safetensors file is damaged: {_first_line(error)}"
    if isinstance(error, pickle.UnpicklingError):
        return f"a file is damaged or holds more than tensors: {_first_line(error)}"
    if isinstance(error, HFValidationError):
        return _first_line(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return "there is too little memory for this"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from or during."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]

"""Downloads checkpoints by their address into a cache, where they stay."""

import hashlib
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants, get_session
from huggingface_hub.utils import tqdm

from ..errors import UserError
from ..files import locked_folder
from ..refusals import HttpError
from .published import Published

# Hosts whose addresses show a page, and the address of the file itself.
_DIRECT = (
    (
        r"https://drive\.google\.com/(?:file/d/|uc\?export=download&id=)([\w-]+).*",
        r"https://drive.usercontent.google.com/download?id=\1&export=download&confirm=t",
    ),
    (r"(https://www\.dropbox\.com/[^?#]+).*", r"\1?dl=1"),
)
# The beginning of a file's SHA-256, where its name has it, as torch.hub has it.
_DIGEST = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")
_PARTIAL = ".partial"


def cache_folder() -> Path:
    """The folder of what this library downloads and converts: `hf_vit_family` next to the cache of the Hub."""
    return Path(constants.HF_HOME) / "hf_vit_family"


def download(url: str, name: str) -> Path:
    """
    A file from the cache, or else from its address. A download that was interrupted goes on where it stopped.

    Args:
        url: Its address. name: Of the file in the cache.

    Raises:
        UserError: if it is in neither, with the place to put it by hand; or another process downloads it now.
    """
    folder = cache_folder() / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / name
    if path.is_file():
        return path
    by_hand = f"get {url} with a browser, and save it as {path}"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{name} is not in the cache, and HF_HUB_OFFLINE is set: {by_hand}")
    direct = url.partition("#")[0]
    for pattern, replacement in _DIRECT:
        direct = re.sub(pattern, replacement, direct)
    with locked_folder(folder):
        partial = folder / _PARTIAL
        try:
            _fetch(direct, partial, name)
        except HttpError as error:
            raise UserError(
                f"{name}: {urlsplit(direct).netloc} ended the download ({error}); try again, which goes on where it "
                f"stopped, or {by_hand}"
            ) from error
        except _NoFileError as error:
            partial.unlink(missing_ok=True)
            raise UserError(f"{name}: {error}; {by_hand}") from error
        partial.replace(path)
    return path


class _NoFileError(Exception):
    """An answer that is no file."""


def _fetch(url: str, partial: Path, name: str) -> None:
    """Writes what `url` has to `partial`, after what is there already."""
    begun = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={begun}-"} if begun else {})}
    with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
        if response.status_code not in (200, 206):
            raise _NoFileError(f"{urlsplit(url).netloc} answers {response.status_code}")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise _NoFileError(f"{urlsplit(url).netloc} shows a page in place of the file")
        if response.status_code == 200:
            begun = 0
        length = int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        with (
            partial.open("ab" if begun else "wb") as file,
            tqdm(total=length and begun + length, initial=begun, unit="B", unit_scale=True, desc=name) as bar,
        ):
            for chunk in response.iter_raw():
                file.write(chunk)
                bar.update(len(chunk))


def download_published(key: str, published: Published, suffix: str) -> Path:
    """
    The file of a published checkpoint, as [`download`].

    Args:
        key: Its name, `"<variant>.<tag>"`.
        suffix: File type, where the address does not tell it.

    Raises:
        UserError: also if the file is not the one that was published.
    """
    name = unquote(published.url.replace("#/", "/").rpartition("/")[2])
    if urlsplit(published.url).netloc == "huggingface.co" or ("." not in name and name != "checkpoint"):
        name = key + (Path(name).suffix or suffix)
    path = download(published.url, name)
    if (found := _DIGEST.search(name)) and not (digest := _sha256(path)).startswith(found[1]):
        path.unlink()
        raise UserError(
            f"{name}: the file that {urlsplit(published.url).netloc} gave is damaged or another one (its SHA-256 is "
            f"{digest}): try again"
        )
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

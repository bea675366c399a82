"""
Which splits and classes a folder of images or videos holds.

The rules are those of `datasets`' imagefolder (huggingface/datasets@5.2.0 src/datasets/data_files.py and
packaged_modules/folder_based_builder): its words for splits, its hidden folders, and the folder of a file as its class.
`datasets` takes any folder of any depth for a split by its name, in lower case only. Here a split is a folder of
class folders and case does not matter, so that a class may be called "train". Where a folder has two readings it is
refused.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.videofolder.videofolder import VideoFolder
from PIL import Image

from ..errors import UserError
from ..notices import listed, notice

VIDEO_EXTENSIONS = frozenset(
    {
        *VideoFolder.EXTENSIONS,
        *(".3g2", ".3gp", ".asf", ".divx", ".dv", ".f4v", ".flv", ".gif", ".m2t", ".m2ts", ".m4v", ".mjpeg", ".mjpg"),
        *(
            ".mpe",
            ".mpg",
            ".mts",
            ".mxf",
            ".nut",
            ".ogg",
            ".ogm",
            ".ogv",
            ".qt",
            ".rm",
            ".rmvb",
            ".ts",
            ".vob",
            ".webm",
        ),
        *(".wmv", ".y4m"),
    }
)
IMAGE_EXTENSIONS = frozenset(
    {
        *ImageFolder.EXTENSIONS,
        *(extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN),
        *(".heic", ".heif", ".jxl"),
    }
    - {".mpg", ".mpeg"}
)
# The class of everything where labels are not read.
UNLABELLED = "unlabelled"
# Folders of file systems and programs, besides those that begin with a dot or two underscores.
_FOREIGN = frozenset({"@eadir", "$recycle.bin", "system volume information", "lost+found"})
_KEYWORDS = {keyword: str(split) for split, keywords in SPLIT_KEYWORDS.items() for keyword in keywords}
_SPLIT = re.compile(
    rf"(?:^|[{NON_WORDS_CHARS}])({'|'.join(sorted(_KEYWORDS, key=len, reverse=True))})(?=$|[{NON_WORDS_CHARS}])",
    re.IGNORECASE,
)


def split_role(name: str) -> str | None:
    """
    `"train"`, `"validation"` or `"test"` for what a folder, file or split of that name is for; None if it does not say.
    """
    match = _SPLIT.search(name)
    return match and _KEYWORDS[match[1].lower()]


def is_visible(name: str, is_folder: bool) -> bool:
    """
    Whether a name is meant for users: `datasets` leaves out what begins with a dot, and folders with two underscores.
    """
    return not name.startswith(".") and not (is_folder and (name.startswith("__") or name.lower() in _FOREIGN))


@dataclass
class Folder:
    """
    A folder with what is visible in it.

    Args:
        path: Where it is. files: Its images or videos, sorted. others: Its other files, sorted.
        children: Name to folder, sorted. folders: Those of them with images or videos at any depth.
    """

    path: Path
    files: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    children: dict[str, "Folder"] = field(default_factory=dict)
    folders: dict[str, "Folder"] = field(default_factory=dict)

    def walk(self) -> Iterator["Folder"]:
        """This folder and those below it."""
        yield self
        for folder in self.children.values():
            yield from folder.walk()

    def all_files(self) -> list[Path]:
        """The images or videos at any depth."""
        return [file for folder in self.walk() for file in folder.files]

    def all_others(self) -> list[Path]:
        """The other files at any depth."""
        return [file for folder in self.walk() for file in folder.others]


def read_folder(path: Path, extensions: Collection[str], _above: tuple[str, ...] = ()) -> Folder:
    """
    What a folder holds of files with these extensions; links are followed, unless they lead to a folder above them.
    """
    folder, real = Folder(path), os.path.realpath(path)
    if real in _above:
        return folder
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not is_visible(entry.name, entry.is_dir()):
                continue
            inside = path / entry.name
            if entry.is_dir():
                child = read_folder(inside, extensions, (*_above, real))
                folder.children[entry.name] = child
                if child.files or child.folders:
                    folder.folders[entry.name] = child
            elif inside.suffix.lower() in extensions:
                folder.files.append(inside)
            else:
                folder.others.append(inside)
    return folder


@dataclass
class Layout:
    """
    Args:
        splits: Name of each split as on disk, to class, to its files. A folder without splits is "train".
        notices: What a user should know of how it was read.
    """

    splits: dict[str, dict[str, list[Path]]]
    notices: list[str]

    @property
    def classes(self) -> set[str]:
        """The classes of all splits."""
        return {name for classes in self.splits.values() for name in classes}


def _unwrap(folder: Folder, into_splits: bool) -> Folder:
    """The first folder that holds more than one folder of folders: an archive is often a folder in a folder."""
    while len(folder.folders) == 1:
        (only,) = folder.folders.values()
        if only.files or not only.folders or (split_role(only.path.name) and not into_splits):
            break
        folder = only
    return folder


def _find_classes(folder: Folder, notices: list[str]) -> dict[str, list[Path]]:
    """The classes below a folder: its folders."""
    deep = {name: child for name, child in folder.folders.items() if not child.files}
    inner = {name for child in deep.values() for name in child.folders}
    if deep and (len(inner) > 1 or any(below.folders for child in deep.values() for below in child.folders.values())):
        raise UserError(
            f"{folder.path}: the classes may be {listed(folder.folders, 4)}, or the folders in "
            f"them, {listed(sorted(inner), 4)}: name a folder of class folders, as {next(iter(deep.values())).path}, "
            f"or move each file into its class folder; splits come above classes, as in train/cat"
        )
    mixed = [name for name, child in folder.folders.items() if child.files and child.folders]
    if mixed:
        notices.append(f"{folder.path}: folders inside {listed(mixed, 4)} belong to the class around them")
    return {name: child.all_files() for name, child in folder.folders.items()}


def _split_by_file_name(classes: dict[str, list[Path]]) -> dict[str, dict[str, list[Path]]]:
    """Splits that the names of the files tell, where all do and every class has a file to train on; else none."""
    splits: dict[str, dict[str, list[Path]]] = {}
    for name, files in classes.items():
        for file in files:
            role = split_role(file.stem)
            if role is None:
                return {}
            splits.setdefault(role, {}).setdefault(name, []).append(file)
    return splits if len(splits) > 1 and splits.get("train", {}).keys() == classes.keys() else {}


def find_layout(root: Folder, kind: str = "image") -> Layout:
    """
    The splits and classes of a folder: `<split>/<class>/<file>` or `<class>/<file>`, below any folders around them.

    Args:
        root: What `read_folder` found. kind: What the files are, for messages.

    Raises:
        UserError: if there are no class folders, or folders can be read in two ways.
    """
    notices: list[str] = []
    level = _unwrap(root, into_splits=False)
    named = {name: child for name, child in level.folders.items() if split_role(name)}
    splits = {name: child for name, child in named.items() if child.folders}
    rest = [name for name in level.folders if name not in splits]
    direct = [name for name in rest if level.folders[name].files]
    if not level.folders:
        others = root.all_others()
        found = f"; its files are {_by_extension(others)}" if others else ""
        raise UserError(f"{root.path}: found no class folders with {kind}s, as in {root.path}/cat/1.jpg{found}")
    if splits and len(splits) == 1 and len(set(direct) - set(named)) > 1:
        raise UserError(
            f"{level.path}: {next(iter(splits))} may be a split, or a class as {listed(direct, 4)}: move the classes "
            f"below a folder 'train', or name the folder of the split"
        )
    if not splits and named and len(rest) - len(named) < len(named):
        raise UserError(
            f"{level.path}: {listed(named, 4)} hold {kind}s, but no class folders as "
            f"in {level.path}/{next(iter(named))}/cat; "
            f"if they are classes, move them below a folder 'train'"
        )
    if splits:
        if rest:
            notices.append(f"{level.path}: left out {listed(rest, 4)}, which are no splits with class folders")
        found = {name: _find_classes(_unwrap(child, into_splits=True), notices) for name, child in splits.items()}
    else:
        if named:
            notices.append(f"{level.path}: {listed(named, 4)} is taken for a class, as are the folders next to it")
        classes = _find_classes(level, notices)
        found = _split_by_file_name(classes) or {"train": classes}
    counted = sum(len(files) for classes in found.values() for files in classes.values())
    stray = len(root.all_files()) - counted - sum(len(level.folders[name].all_files()) for name in rest if splits)
    if stray > 0:
        notices.append(f"{root.path}: left out {stray} {kind}s that lie outside the class folders")
    others = [file for folder in (splits or level.folders).values() for file in folder.all_others()]
    if others:
        notices.append(f"{root.path}: left out files that are no {kind}s by their extension: {_by_extension(others)}")
    return Layout(found, notices)


def find_unlabelled(root: Folder, kind: str = "image") -> Layout:
    """
    The files of a folder at any depth, all of one class: the folders that `datasets` takes for splits are, where one of
    them is for training; else every file is "train".

    Args:
        root: What `read_folder` found. kind: What the files are, for messages.

    Raises:
        UserError: if it holds none.
    """
    notices: list[str] = []
    level = _unwrap(root, into_splits=False)
    splits = {name: child for name, child in level.folders.items() if split_role(name)}
    if "train" not in map(split_role, splits):
        splits = {"train": root}
    found = {name: {UNLABELLED: child.all_files()} for name, child in splits.items()}
    outside = len(root.all_files()) - sum(len(files) for classes in found.values() for files in classes.values())
    if not root.all_files():
        raise UserError(f"{root.path}: found no {kind}s")
    if outside:
        notices.append(f"{root.path}: left out {outside} {kind}s that lie outside {listed(splits, 4)}")
    return Layout(found, notices)


def _by_extension(files: list[Path]) -> str:
    counts = Counter(file.suffix.lower() or "without extension" for file in files)
    return listed((f"{count} {suffix}" for suffix, count in counts.most_common()), 6)


def tell(layout: Layout) -> None:
    """Prints the notices of a layout."""
    for line in layout.notices:
        notice(line)

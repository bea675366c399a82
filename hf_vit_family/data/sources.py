"""Finds labelled images: the built-in digits, a folder of class folders, parquet files, or the Hub."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ..errors import UserError
from ..hub import check_revision
from ..modeling.configuration_vitf import unknown_name_message
from ..notices import listed, notice
from ..refusals import HttpError, hub_reason
from .class_names import Classes
from .folders import (
    IMAGE_EXTENSIONS,
    UNLABELLED,
    Folder,
    Layout,
    find_layout,
    find_unlabelled,
    read_folder,
    split_role,
    tell,
)
from .images import UnreadableImageError, read_image

# What data sets call their splits, in the order in which one for evaluation is looked for. "test" comes last: its
# labels are withheld in many sets that have a validation split too.
EVALUATION_SPLITS = ("validation", "val", "valid", "dev", "test")
# Files of `datasets`' imagefolder and videofolder that give the labels of the files around them.
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
IMAGE_COLUMNS = ("image", "img", "images", "pixel_values", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class", "cls", "category")


@dataclass
class Split:
    """
    Labelled images or videos, undecoded.

    Args:
        name: The split's name.
        labels: int64 of shape (number of images,), indices into `classes`.
        classes: Names of the classes.
        read: Decodes the image of an index to a PIL image; UnreadableImageError if it is broken. The video of an index
            it gives in a form that the video processor takes: frames are decoded once it is known which.
        image_name: What a user knows the image or video of an index by.
        numbered: Whether the classes have no names, only the numbers of a column of integers.
    """

    name: str
    labels: np.ndarray
    classes: list[str]
    read: Callable[[int], Any]
    image_name: Callable[[int], str]
    numbered: bool = False

    @property
    def named_classes(self) -> Classes:
        """The classes as `match_classes` takes them."""
        return Classes(self.classes, f"split {self.name!r}", self.numbered)


class DigitsSource:
    """
    The 1,797 scans of handwritten digits that scikit-learn ships: 8 x 8 pixels, grey, 17 levels. A fixed fifth of each
    digit is the split "test".
    """

    split_names = ("train", "test")

    def open(self, split: str) -> Split:
        from sklearn.datasets import load_digits  # seconds to import

        digits = load_digits()
        test = stratified_draw(digits.target, 0.2)
        rows = test if split == "test" else np.setdiff1d(np.arange(len(digits.target)), test)
        pixels = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)
        return Split(
            name=split,
            labels=digits.target[rows].astype(np.int64),
            classes=[str(name) for name in digits.target_names],
            read=lambda i: Image.fromarray(pixels[i]),
            image_name=lambda i: f"digit {rows[i]}",
        )


class FolderSource:
    """
    `<class>/<file>` or `<split>/<class>/<file>`, read by the rules of [`~folders.find_layout`].

    Args:
        root: The folder.
        layout: What it holds; found by default.
        read: What a split's `read` does with a path.
    """

    def __init__(self, root: Path, layout: Layout | None = None, read: Callable[[Path], Any] = read_image):
        self.root = root
        self.read = read
        layout = layout or find_layout(read_folder(root, IMAGE_EXTENSIONS))
        tell(layout)
        self.splits = layout.splits
        self.split_names = tuple(layout.splits)

    def open(self, split: str) -> Split:
        files = self.splits[split]
        classes = sorted(files)
        paths = [path for name in classes for path in files[name]]
        return Split(
            name=split,
            labels=np.repeat(np.arange(len(classes)), [len(files[name]) for name in classes]),
            classes=classes,
            read=lambda i: self.read(paths[i]),
            image_name=lambda i: str(paths[i]),
        )


class TableSource:
    """
    Rows with an image column and a label column: local parquet files, or a data set of the Hub.

    Args:
        dataset: A parquet file, a folder with parquet files, or a Hub id.
        config_name: Which of a Hub data set's configurations.
        image_column, label_column: Found by type and usual names where None.
        kind: What `datasets` reads local files with: the suffix of tables, without the dot, or "imagefolder" or
            "videofolder" for a folder with a metadata file.
        revision: Branch, tag or commit of a data set on the Hub.
        labelled: Whether labels are read; without them everything is of one class, and no column of labels is needed.
    """

    # The option that names the column, its type, and what it is usually called.
    image_option, feature, usual_columns = "image_column", datasets.Image, IMAGE_COLUMNS

    def __init__(
        self,
        dataset: str,
        config_name: str | None,
        image_column: str | None,
        label_column: str | None,
        kind: str = "parquet",
        revision: str | None = None,
        labelled: bool = True,
    ):
        self.dataset = dataset
        self.labelled = labelled
        self.image_column = image_column
        self.label_column = label_column
        path = Path(dataset).expanduser()
        if kind.endswith("folder"):
            self.location = (kind,)
            self.options = {"data_dir": str(path)}
            self.split_names = tuple(self._ask(datasets.get_dataset_split_names, *self.location, **self.options))
        elif path.exists():
            self.location = (kind,)
            self.options = {"data_files": table_splits(path, f".{kind}")}
            self.split_names = tuple(self.options["data_files"])
        else:
            self.location = (dataset, config_name)
            self.options = {"revision": revision}
            self.split_names = tuple(self._ask(datasets.get_dataset_split_names, *self.location, **self.options))

    def _options(self, split: str) -> dict[str, Any]:
        """
        What `datasets` reads for a split: its own files only, since it takes the classes of the first file for all.
        """
        files = self.options.get("data_files")
        return {**self.options, "data_files": {split: files[split]}} if files else self.options

    def _ask(self, function: Callable, *args, **kwargs):
        """Calls `datasets`, and turns what can go wrong there into one line."""
        try:
            return function(*args, **kwargs)
        except (OSError, ValueError, RuntimeError, HttpError, datasets.exceptions.DatasetsError) as error:
            where = "cannot be read" if len(self.location) == 1 else "is no local path and no Hub data set in reach"
            reason = hub_reason(error) or " ".join(str(error).split())[:300]
            raise UserError(f"dataset={self.dataset!r} {where}: {reason}") from error

    def _columns(self, features: datasets.Features) -> tuple[str, str | None]:
        """Names of the column with the images, or videos, and of the label column; None where labels are not read."""
        image = self.image_column or _find_column(features, self.feature, self.usual_columns)
        label = self.label_column or _find_column(features, datasets.ClassLabel, LABEL_COLUMNS)
        needed = {self.image_option: image, "label_column": label}
        if not self.labelled:
            label = None
            del needed["label_column"]
        for field, name in needed.items():
            if name is None:
                raise UserError(f"{self.dataset}: name the {field}; the columns are {', '.join(features)}")
            if name not in features:
                raise UserError(f"{field}={name!r}: {self.dataset} has the columns {', '.join(features)}")
        return image, label

    def _encoded(self, row, name: str) -> Image.Image:
        """Decodes a cell of the image column."""
        if isinstance(row, dict):
            row = row["bytes"] if row.get("bytes") is not None else row.get("path")
        if row is None:
            raise UnreadableImageError(f"cannot read image {name}: the cell is empty")
        return read_image(row, name)

    def open(self, split: str) -> Split:
        table = self._ask(datasets.load_dataset, *self.location, split=split, **self._options(split))
        image, label = self._columns(table.features)
        if label is None:
            labels, classes, numbered = np.zeros(len(table), np.int64), [UNLABELLED], False
        else:
            labels, classes, numbered = encode_labels(
                table.data.column(label).to_pylist(), table.features[label], label, split
            )
        images = _without_decoding(table.select_columns([image]), image, self.dataset)

        def image_name(i: int) -> str:
            cell = images[i][image]
            path = cell.get("path") if isinstance(cell, dict) else None
            return f"{path or 'image'} (row {i} of {split})"

        def read(i: int) -> Image.Image:
            return self._encoded(images[i][image], f"in row {i} of {split}")

        return Split(split, labels, classes, read, image_name, numbered)

    def stream(self, split: str) -> tuple[datasets.IterableDataset, list[str], Callable[[dict], tuple]]:
        """
        The rows of a split as they come, for sets larger than the disk.

        Returns:
            The rows; the names of the classes; and a function from a row to (reader of the image, label, image name).
        """
        rows = self._ask(datasets.load_dataset, *self.location, split=split, streaming=True, **self._options(split))
        features = rows.features or self._ask(rows._resolve_features).features
        image, label = self._columns(features)
        if label is not None and not isinstance(features[label], datasets.ClassLabel):
            raise UserError(
                f"label_column={label!r} of {self.dataset} does not name its classes, which streaming needs; "
                f"use streaming=False"
            )
        classes = [UNLABELLED] if label is None else features[label].names

        def unpack(row: dict) -> tuple[Callable[[], Image.Image], int, str]:
            cell, number = row[image], 0 if label is None else row[label]
            name = (cell.get("path") if isinstance(cell, dict) else None) or f"of {split}"
            check_labels(np.array([-1 if number is None else number]), len(classes), label, split)
            return lambda: self._encoded(cell, name), number, name

        columns = [image] if label is None else [image, label]
        return _without_decoding(rows.select_columns(columns), image, self.dataset), classes, unpack


def _without_decoding(rows, column: str, dataset: str):
    """Rows whose image column gives encoded bytes: decoding happens in loader workers, one broken image at a time."""
    try:
        return rows.cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # Arrow's own errors are of these
        raise UserError(f"image_column={column!r} of {dataset} does not hold images") from error


def _find_column(features: datasets.Features, kind: type, usual: tuple[str, ...]) -> str | None:
    """The column of a usual name, or else the only one of that type; None if there is none or a choice."""
    for name in usual:
        if name in features:
            return name
    of_kind = [name for name, feature in features.items() if isinstance(feature, kind)]
    return of_kind[0] if len(of_kind) == 1 else None


def table_splits(path: Path, suffix: str) -> dict[str, list[str]]:
    """
    Files of each split: a single file is "train"; in a folder, what a file or a folder around it is called tells. Where
    some files tell and others do not, those are left out.
    """
    if path.is_file():
        return {"train": [str(path)]}
    splits: dict[str | None, list[str]] = {}
    for file in sorted(read_folder(path, {suffix}).all_files()):
        *folders, name = file.relative_to(path).with_suffix("").parts
        role = next(filter(None, map(split_role, (*folders, name))), None)
        splits.setdefault(role, []).append(str(file))
    others = splits.pop(None, [])
    if not splits:
        return {"train": others} if others else {}
    if others:
        notice(f"{path}: left out {listed((Path(file).name for file in others), 4)}, whose names tell no split")
    return splits


def check_labels(labels: np.ndarray, num_classes: int, column: str, split: str) -> None:
    """Raises UserError that names the first label outside 0 to num_classes - 1."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(
            f"label_column={column!r}: {labels[wrong[0]]} in row {wrong[0]} of split {split!r} lies outside the "
            f"range 0 to {num_classes - 1} ({len(wrong)} such rows)"
        )


def encode_labels(values: list, feature, column: str, split: str) -> tuple[np.ndarray, list[str], bool]:
    """
    Cells of a label column as indices, class names, and whether these are only numbers: a ClassLabel names them;
    integers name themselves; strings are sorted.

    Raises:
        UserError: for an empty cell, a label outside the range, or values of another type.
    """
    if None in values:
        raise UserError(f"label_column={column!r}: row {values.index(None)} of split {split!r} has no label")
    kinds = {type(value) for value in values}
    if kinds <= {str}:
        classes = sorted(set(values))
        index = {name: i for i, name in enumerate(classes)}
        return np.array([index[value] for value in values], dtype=np.int64), classes, False
    if not kinds <= {int, bool}:
        raise UserError(
            f"label_column={column!r} holds {', '.join(sorted(k.__name__ for k in kinds))}; need int or str"
        )
    labels = np.array(values, dtype=np.int64)
    named = isinstance(feature, datasets.ClassLabel)
    classes = feature.names if named else [str(i) for i in range(labels.max(initial=-1) + 1)]
    check_labels(labels, len(classes), column, split)
    return labels, classes, not named


def stratified_draw(labels: np.ndarray, fraction: float) -> np.ndarray:
    """
    Sorted indices of a stratified part of a data set: of each class the same fraction, rounded, drawn at random. The
    draw is fixed: runs with different seeds are compared on the same images.
    """
    generator = np.random.default_rng(0)
    chosen = [
        generator.permutation(members)[: round(fraction * len(members))]
        for members in (np.flatnonzero(labels == label) for label in np.unique(labels))
    ]
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *chosen]))


def part_of(split: Split, indices: np.ndarray, name: str) -> Split:
    """A split of some of another's images."""
    return Split(
        name=name,
        labels=split.labels[indices],
        classes=split.classes,
        read=lambda i: split.read(int(indices[i])),
        image_name=lambda i: split.image_name(int(indices[i])),
        numbered=split.numbered,
    )


def hold_out(split: Split, fraction: float) -> tuple[Split, Split]:
    """The rest of a split, and the part of each class that is held out for evaluation; UserError if a part is empty."""
    held_out = stratified_draw(split.labels, fraction)
    rest = np.setdiff1d(np.arange(len(split.labels)), held_out)
    if not len(held_out) or not len(rest):
        raise UserError(
            f"eval_fraction={fraction:g} splits {len(split.labels)} images into {len(rest)} and {len(held_out)}; "
            f"neither part may be empty"
        )
    without = np.setdiff1d(split.labels, split.labels[held_out])
    if len(without):
        counts = np.bincount(split.labels)
        small = listed((f"{split.classes[label]} (of {counts[label]})" for label in without), 4)
        notice(
            f"eval_fraction={fraction:g} holds out no image of {len(without)} classes, which evaluation cannot "
            f"see: {small}"
        )
    return (
        part_of(split, rest, split.name),
        part_of(split, held_out, f"{split.name}, held out {fraction:g} of each class"),
    )


def open_source(
    dataset: str,
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    prefer_tables: bool = False,
    revision: str | None = None,
    labelled: bool = True,
) -> DigitsSource | FolderSource | TableSource:
    """
    The source that a data set's name means: `"digits"`, a folder, a parquet file, or a Hub id.

    A folder is read as images or as parquet files, whatever it holds more files of, as `datasets` does; as parquet
    files in any case with `prefer_tables`. Where it is not `labelled`, images need neither class folders nor a column
    of labels.
    """
    path = Path(dataset).expanduser()
    check_revision("dataset_revision", revision, f"the data set {dataset}", dataset != "digits" and not path.exists())
    if dataset == "digits":
        return DigitsSource()
    kind = "parquet"
    if path.is_dir():
        folder = read_media(path, IMAGE_EXTENSIONS)
        metadata = [file for file in folder.all_others() if file.name in METADATA]
        tables = [file for file in folder.all_others() if file.suffix == ".parquet" and file not in metadata]
        count = len(folder.all_files())
        if not tables or (count > len(tables) and not prefer_tables):
            found = class_folders(folder, "image", metadata, tables) if labelled else find_unlabelled(folder)
            if found is not None:
                return FolderSource(path, found)
            kind = "imagefolder"
        elif count:
            notice(f"{path}: {len(tables)} parquet files are read, and {count} images next to them left out")
    if path.is_file() and path.suffix != ".parquet":
        raise UserError(
            f"dataset={dataset!r} is a file, but no parquet file; give a folder, a parquet file or a Hub id"
        )
    if not path.exists() and (dataset.startswith((".", "/", "~")) or dataset.endswith(".parquet")):
        raise UserError(f"dataset={dataset!r} does not exist")
    return TableSource(dataset, config_name, image_column, label_column, kind, revision, labelled)


def read_media(path: Path, extensions: Collection[str]) -> Folder:
    """Lists the files of a folder; where no file has one of these extensions, those without any extension count."""
    folder = read_folder(path, extensions)
    return folder if folder.folders or folder.files else read_folder(path, {""})


def class_folders(folder: Folder, kind: str, labelling: Sequence[Path], others: Sequence[Path] = ()) -> Layout | None:
    """
    The class folders in a folder, or None where tables in it say more.

    Args:
        folder: What it holds. kind: As in `find_layout`.
        labelling: Tables that may label its files: they are read unless there are folders for two classes or more.
        others: Tables that are not read where there are class folders.
    """
    try:
        layout = find_layout(folder, kind)
    except UserError:
        if labelling:
            return None
        raise
    if labelling and len(layout.classes) < 2:
        return None
    tables = [str(table.relative_to(folder.path)) for table in (*labelling, *others)]
    if tables:
        layout.notices.append(f"{folder.path}: its class folders are read, and {listed(tables, 4)} left out")
    return layout


def _find_split(source, option: str, name: str) -> str:
    """The split of that name, or else the only one that is for the same thing; UserError names those that exist."""
    if name in source.split_names:
        return name
    role = split_role(name)
    found = [other for other in source.split_names if role and split_role(other) == role]
    if len(found) == 1:
        return found[0]
    raise UserError(
        f"{unknown_name_message(option, name, found or source.split_names)}; there are {', '.join(source.split_names)}"
    )


def training_split(source, name: str) -> str:
    """The split to train on; UserError names those that exist."""
    return _find_split(source, "train_split", name)


def evaluation_split(source, name: str | None) -> str | None:
    """The split to evaluate on: the named one, or the first usual one that exists, or None."""
    if name is not None:
        return _find_split(source, "eval_split", name)
    usual = next((usual for usual in EVALUATION_SPLITS if usual in source.split_names), None)
    if usual is not None:
        return usual
    for role in ("validation", "test"):
        found = [name for name in source.split_names if split_role(name) == role]
        if len(found) > 1:
            raise UserError(f"choose an eval_split: {', '.join(found)}")
        if found:
            return found[0]
    return None

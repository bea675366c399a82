"""Where labelled images come from: the built-in digits, a folder of class folders, parquet files, or the Hub."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from .errors import UserError
from .images import UnreadableImageError, read_image
from .modeling.configuration_vitf import unknown_name_message

# What data sets call their splits, in the order in which one for evaluation is looked for. "test" comes last: its labels
# are withheld in many sets that have a validation split too.
EVALUATION_SPLITS = ("validation", "val", "valid", "dev", "test")
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
        read: Decodes the image of an index to a PIL image; UnreadableImageError if it is broken. The video of an index it
            gives in a form that the video processor takes: frames are decoded once it is known which.
        image_name: What a user knows the image or video of an index by.
    """

    name: str
    labels: np.ndarray
    classes: list[str]
    read: Callable[[int], Any]
    image_name: Callable[[int], str]

    def labels_for(self, classes: list[str]) -> np.ndarray:
        """The labels as indices into another list of classes, matched by name; UserError if a class is not in it."""
        if self.classes == classes:
            return self.labels
        index = {name: i for i, name in enumerate(classes)}
        used = np.unique(self.labels)
        missing = [self.classes[i] for i in used if self.classes[i] not in index]
        if missing:
            raise UserError(
                f"{len(missing)} classes of split {self.name!r} do not occur among the {len(classes)} classes expected, "
                f"first {missing[0]!r}"
            )
        table = np.zeros(len(self.classes), dtype=np.int64)
        table[used] = [index[self.classes[i]] for i in used]
        return table[self.labels]


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
    `<root>/<class>/...` or `<root>/<split>/<class>/...`. Every file that is not hidden is taken for an image.

    Args:
        root: The folder. read: What a split's `read` does with a path.
    """

    def __init__(self, root: Path, read: Callable[[Path], Any] = read_image):
        self.read = read
        folders = _visible_folders(root)
        known = [folder for folder in folders if folder.name in ("train", *EVALUATION_SPLITS)]
        self.folders = {folder.name: folder for folder in known} or {"train": root}
        self.split_names = tuple(self.folders)
        self.classes = sorted({c.name for folder in self.folders.values() for c in _visible_folders(folder)})
        if not self.classes:
            raise UserError(f"{root}: found neither parquet files nor class folders, as in {root}/cat/1.jpg")

    def open(self, split: str) -> Split:
        root = self.folders[split]
        paths, labels = [], []
        for label, name in enumerate(self.classes):
            files = sorted(p for p in (root / name).rglob("*") if p.is_file() and not p.name.startswith("."))
            paths += files
            labels += [label] * len(files)
        return Split(
            name=split,
            labels=np.array(labels, dtype=np.int64),
            classes=self.classes,
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
        kind: Suffix of local files, without the dot.
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
    ):
        self.dataset = dataset
        self.image_column = image_column
        self.label_column = label_column
        path = Path(dataset).expanduser()
        if path.exists():
            self.location = (kind,)
            self.options = {"data_files": table_splits(path, f".{kind}")}
            self.split_names = tuple(self.options["data_files"])
        else:
            self.location = (dataset, config_name)
            self.options = {}
            self.split_names = tuple(self._ask(datasets.get_dataset_split_names, *self.location))

    def _ask(self, function: Callable, *args, **kwargs):
        """Calls `datasets`, and turns what can go wrong there into one line."""
        try:
            return function(*args, **kwargs)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            where = "cannot be read" if len(self.location) == 1 else "is no local path and no Hub data set in reach"
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"dataset={self.dataset!r} {where}: {reason}") from error

    def _columns(self, features: datasets.Features) -> tuple[str, str]:
        """Names of the column with the images, or videos, and of the label column."""
        image = self.image_column or _find_column(features, self.feature, self.usual_columns)
        label = self.label_column or _find_column(features, datasets.ClassLabel, LABEL_COLUMNS)
        for field, name in ((self.image_option, image), ("label_column", label)):
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
        table = self._ask(datasets.load_dataset, *self.location, split=split, **self.options)
        image, label = self._columns(table.features)
        labels, classes = encode_labels(table.data.column(label).to_pylist(), table.features[label], label, split)
        images = _without_decoding(table.select_columns([image]), image, self.dataset)

        def image_name(i: int) -> str:
            cell = images[i][image]
            path = cell.get("path") if isinstance(cell, dict) else None
            return f"{path or 'image'} (row {i} of {split})"

        def read(i: int) -> Image.Image:
            return self._encoded(images[i][image], f"in row {i} of {split}")

        return Split(name=split, labels=labels, classes=classes, read=read, image_name=image_name)

    def stream(self, split: str) -> tuple[datasets.IterableDataset, list[str], Callable[[dict], tuple]]:
        """
        The rows of a split as they come, for sets larger than the disk.

        Returns:
            The rows; the names of the classes; and a function from a row to (reader of the image, label, image name).
        """
        rows = self._ask(datasets.load_dataset, *self.location, split=split, streaming=True, **self.options)
        features = rows.features or self._ask(rows._resolve_features).features
        image, label = self._columns(features)
        if not isinstance(features[label], datasets.ClassLabel):
            raise UserError(
                f"label_column={label!r} of {self.dataset} does not name its classes, which streaming needs; "
                f"use streaming=False"
            )
        classes = features[label].names

        def unpack(row: dict) -> tuple[Callable[[], Image.Image], int, str]:
            cell, number = row[image], row[label]
            name = (cell.get("path") if isinstance(cell, dict) else None) or f"of {split}"
            check_labels(np.array([-1 if number is None else number]), len(classes), label, split)
            return lambda: self._encoded(cell, name), number, name

        return _without_decoding(rows.select_columns([image, label]), image, self.dataset), classes, unpack


def _visible_folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


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
    """Files of each split: a single file is "train"; in a folder, file or parent names that hold a split's name tell."""
    if path.is_file():
        return {"train": [str(path)]}
    splits: dict[str, list[str]] = {}
    for file in sorted(path.rglob(f"*{suffix}")):
        words = re.split(r"[^a-z]+", str(file.relative_to(path)).lower())
        name = next((word for word in words if word in ("train", *EVALUATION_SPLITS)), "train")
        splits.setdefault(name, []).append(str(file))
    return splits


def check_labels(labels: np.ndarray, num_classes: int, column: str, split: str) -> None:
    """Raises UserError that names the first label outside 0 to num_classes - 1."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(
            f"label_column={column!r}: {labels[wrong[0]]} in row {wrong[0]} of split {split!r} lies outside the "
            f"range 0 to {num_classes - 1} ({len(wrong)} such rows)"
        )


def encode_labels(values: list, feature, column: str, split: str) -> tuple[np.ndarray, list[str]]:
    """
    Cells of a label column as indices and class names: a ClassLabel names them; integers name themselves; strings are
    sorted.

    Raises:
        UserError: for an empty cell, a label outside the range, or values of another type.
    """
    if None in values:
        raise UserError(f"label_column={column!r}: row {values.index(None)} of split {split!r} has no label")
    kinds = {type(value) for value in values}
    if kinds <= {str}:
        classes = sorted(set(values))
        index = {name: i for i, name in enumerate(classes)}
        return np.array([index[value] for value in values], dtype=np.int64), classes
    if not kinds <= {int, bool}:
        raise UserError(
            f"label_column={column!r} holds {', '.join(sorted(k.__name__ for k in kinds))}; need int or str"
        )
    labels = np.array(values, dtype=np.int64)
    named = isinstance(feature, datasets.ClassLabel)
    classes = feature.names if named else [str(i) for i in range(labels.max(initial=-1) + 1)]
    check_labels(labels, len(classes), column, split)
    return labels, classes


def stratified_draw(labels: np.ndarray, fraction: float) -> np.ndarray:
    """
    Sorted indices of a stratified part of a data set: of each class the same fraction, rounded, drawn at random. The draw
    is fixed: runs with different seeds are compared on the same images.
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
    return (
        part_of(split, rest, split.name),
        part_of(split, held_out, f"{split.name}, held out {fraction:g} of each class"),
    )


def open_source(
    dataset: str, config_name: str | None = None, image_column: str | None = None, label_column: str | None = None
) -> DigitsSource | FolderSource | TableSource:
    """The source that a data set's name means: `"digits"`, a folder, a parquet file, or a Hub id."""
    if dataset == "digits":
        return DigitsSource()
    path = Path(dataset).expanduser()
    if path.is_dir() and not any(path.rglob("*.parquet")):
        return FolderSource(path)
    if path.is_file() and path.suffix != ".parquet":
        raise UserError(
            f"dataset={dataset!r} is a file, but no parquet file; give a folder, a parquet file or a Hub id"
        )
    if not path.exists() and (dataset.startswith((".", "/", "~")) or dataset.endswith(".parquet")):
        raise UserError(f"dataset={dataset!r} does not exist")
    return TableSource(dataset, config_name, image_column, label_column)


def training_split(source, name: str) -> str:
    """The split to train on; UserError names those that exist."""
    if name not in source.split_names:
        raise UserError(
            f"{unknown_name_message('train_split', name, source.split_names)}; there are {', '.join(source.split_names)}"
        )
    return name


def evaluation_split(source, name: str | None) -> str | None:
    """The split to evaluate on: the named one, or the first usual one that exists, or None."""
    if name is None:
        return next((usual for usual in EVALUATION_SPLITS if usual in source.split_names), None)
    if name not in source.split_names:
        raise UserError(
            f"{unknown_name_message('eval_split', name, source.split_names)}; there are {', '.join(source.split_names)}"
        )
    return name

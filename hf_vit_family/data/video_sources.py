"""
Where labelled videos come from: the built-in moving digits, a folder of class folders, tables of paths, or the Hub.

A split's `read` gives a path, encoded bytes or an array (N, H, W, C): which frames are decoded is not decided here.
"""

from pathlib import Path

import datasets
import numpy as np

from ..errors import UserError
from ..hub import check_revision
from ..modeling.video_reading_vitf import UnreadableVideoError
from .folders import VIDEO_EXTENSIONS
from .sources import (
    METADATA,
    FolderSource,
    Split,
    TableSource,
    class_folders,
    encode_labels,
    read_media,
    stratified_draw,
)

VIDEO_COLUMNS = ("video", "videos", "path", "video_path", "file", "file_name", "clip", "mp4", "avi", "webm")
TABLES = ("csv", "parquet")


class MovingDigitsSource:
    """
    Videos of 8 frames of 32 x 32 pixels: one of the digits that scikit-learn ships, light on grey, moves to the left or
    the right for four frames; then it moves, from another place, upwards or downwards. The four classes are the
    directions of the two motions.

    A motion shows the frames of the opposite one backwards, and where it takes place does not depend on its direction:
    neither a single frame nor any number of frames whose order is unknown tells more about the class than chance, 25%.

    Each digit of the split moves in all four ways. The digits of the split "test" are a fixed fifth that "train" lacks.
    """

    split_names = ("train", "test")
    classes = ("left-up", "left-down", "right-up", "right-down")
    size, digit_size, step, frames_of_motion = 32, 16, 4, 4
    # The mean that TimeSformer's processor subtracts: what is left for the model to see is the digit.
    background = 115

    def open(self, split: str) -> Split:
        from sklearn.datasets import load_digits  # seconds to import

        digits = load_digits()
        test = stratified_draw(digits.target, 0.2)
        rows = test if split == "test" else np.setdiff1d(np.arange(len(digits.target)), test)
        count = len(self.classes)
        return Split(
            name=split,
            labels=np.tile(np.arange(count), len(rows)),
            classes=list(self.classes),
            read=lambda i: self.draw(
                digits.images[rows[i // count]], i % count, self.places(rows[i // count], i % count)
            ),
            image_name=lambda i: f"digit {rows[i // count]} going {self.classes[i % count]}",
        )

    def places(self, row: int, label: int) -> np.ndarray:
        """
        The upper left corner of the digit where it is furthest left in its first motion, and furthest up in its second:
        (2, 2), each (vertical, horizontal) in pixels. Always the same for a digit and a class, and within the frame.
        """
        room = self.size - self.digit_size
        way = (self.frames_of_motion - 1) * self.step
        return np.random.default_rng([row, label]).integers(0, [[room + 1, room - way + 1], [room - way + 1, room + 1]])

    def draw(self, digit: np.ndarray, label: int, places: np.ndarray) -> np.ndarray:
        """
        Args:
            digit: (8, 8), 0 to 16. label: Index of the class. places: Of the two motions, see `places`.

        Returns:
            uint8 (8, 32, 32, 3).
        """
        brightness = self.background + digit * ((255 - self.background) / 16)
        enlarged = np.rint(brightness).astype(np.uint8).repeat(2, 0).repeat(2, 1)
        frames = []
        for place, direction, towards in zip(
            places, self.classes[label].split("-"), ((0, self.step), (self.step, 0)), strict=True
        ):
            corners = [place + number * np.array(towards) for number in range(self.frames_of_motion)]
            for top, left in corners if direction in ("right", "down") else reversed(corners):
                frame = np.full((self.size, self.size), self.background, np.uint8)
                frame[top : top + self.digit_size, left : left + self.digit_size] = enlarged
                frames.append(frame)
        return np.stack(frames)[..., None].repeat(3, -1)


class VideoTableSource(TableSource):
    """
    Rows with a label and a video: a path in local csv or parquet files, relative to their folder, or videos on the Hub.

    The arguments are those of [`TableSource`], `image_column` being the column with the videos.
    """

    image_option, feature, usual_columns = "video_column", datasets.Video, VIDEO_COLUMNS

    def open(self, split: str) -> Split:
        table = self._ask(datasets.load_dataset, *self.location, split=split, **self._options(split))
        column, label = self._columns(table.features)
        labels, classes, numbered = encode_labels(
            table.data.column(label).to_pylist(), table.features[label], label, split
        )
        videos = table.select_columns([column])
        if isinstance(table.features[column], datasets.Video):
            videos = videos.cast_column(column, datasets.Video(decode=False))
        root = Path(self.dataset).expanduser()
        root = root.parent if root.is_file() else root

        def read(i: int) -> str | bytes:
            cell = videos[i][column]
            if isinstance(cell, dict):
                cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
            if not cell:
                raise UnreadableVideoError(f"cannot read video in row {i} of {split}: the cell is empty")
            if not isinstance(cell, str | bytes):
                raise UserError(f"video_column={column!r} of {self.dataset} does not hold paths or videos")
            if isinstance(cell, bytes) or len(self.location) > 1:
                return cell
            return str(root / cell)

        def video_name(i: int) -> str:
            cell = videos[i][column]
            path = cell.get("path") if isinstance(cell, dict) else cell if isinstance(cell, str) else None
            return f"{path or 'video'} (row {i} of {split})"

        return Split(split, labels, classes, read, video_name, numbered)


def open_video_source(
    dataset: str,
    config_name: str | None = None,
    video_column: str | None = None,
    label_column: str | None = None,
    revision: str | None = None,
) -> MovingDigitsSource | FolderSource | VideoTableSource:
    """
    The source that a data set's name means: `"moving_digits"`, a folder of class folders, a csv or parquet file or a
    folder of them, or a Hub id. Tables in a folder are read where it has no class folders.

    Raises:
        UserError: if it does not exist or holds none of these.
    """
    path = Path(dataset).expanduser()
    on_hub = dataset != "moving_digits" and not path.exists()
    check_revision("dataset_revision", revision, f"the data set {dataset}", on_hub)
    if dataset == "moving_digits":
        return MovingDigitsSource()
    if path.is_dir():
        folder = read_media(path, VIDEO_EXTENSIONS)
        metadata = [file for file in folder.all_others() if file.name in METADATA]
        # Paths in a table are relative to it.
        tables = [
            file for kind in TABLES for file in folder.others if file.suffix == f".{kind}" and file not in metadata
        ]
        layout = class_folders(folder, "video", [*metadata, *tables])
        if layout is not None:
            return FolderSource(path, layout, read=str)
        kind = tables[0].suffix.removeprefix(".") if tables else "videofolder"
    elif path.is_file():
        kind = path.suffix.removeprefix(".")
        if kind not in TABLES:
            raise UserError(
                f"dataset={dataset!r} is no csv or parquet file with paths and labels; give one, or a folder"
            )
    else:
        kind = "parquet"
        if dataset.startswith((".", "/", "~")) or dataset.endswith(tuple(f".{kind}" for kind in TABLES)):
            raise UserError(f"dataset={dataset!r} does not exist")
    return VideoTableSource(dataset, config_name, video_column, label_column, kind, revision)

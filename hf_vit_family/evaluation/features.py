"""
Features of images and clips, batch by batch: what probes judge, and a parquet file of them.

Shapes: B batch, N examples, C channels of a feature.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.image_sets import IGNORED_LABEL
from ..data.load import PreparedSplit
from ..errors import UserError
from ..files import naming_what_is_written, whole_file
from ..loading import Encoder
from ..notices import printable

# Features of a parquet file that are in memory at a time.
ROW_GROUP = 2048
# Key of the file's metadata that says what its features are of.
METADATA = b"vit_family"


@dataclass
class FeatureBatch:
    """
    Args:
        features: (B, C), float32, on the device of the encoder. labels: (B,), on the CPU.
        positions: (B,), of each example in its split.
    """

    features: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor


def feature_batches(
    encoder: Encoder, split: PreparedSplit, batch_size: int, num_workers: int
) -> Iterator[FeatureBatch]:
    """
    The features of a split in its order, without those of images that could not be read, with a progress bar.

    Raises:
        UserError: if the model does not take images of this size, its features are not finite, or nothing is readable.
    """
    loader = DataLoader(split.images, batch_size=batch_size, num_workers=num_workers)
    first = found = 0
    for batch in tqdm(loader, desc=printable(f"features of {split.name}"), unit="batch", leave=False):
        labels = batch["labels"]
        kept = labels != IGNORED_LABEL
        try:
            features = encoder(batch["pixel_values"])
        except ValueError as error:  # such as a size that does not fit; UserError is one too
            raise UserError(str(error)) from error
        positions = torch.arange(first, first + len(labels))
        yield FeatureBatch(features[kept.to(features.device)], labels[kept], positions[kept])
        first += len(labels)
        found += int(kept.sum())
    if not found:
        raise UserError(f"split {split.name!r} has no image that can be read")


class FeatureCache:
    """
    Features and labels of a split, kept in a file that has no name: the system holds as much of it in memory as there
    is room for, and nothing is left of it afterwards.

    Args:
        batches: As from `feature_batches`; all of them are taken.
    """

    def __init__(self, batches: Iterable[FeatureBatch]):
        labels = []
        channels = 0
        with naming_what_is_written(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as file:
            for batch in batches:
                labels.append(batch.labels)
                channels = batch.features.shape[1]
                file.write(np.ascontiguousarray(batch.features.cpu().numpy()).data)
            file.flush()
            self.labels = torch.cat(labels)
            # The map keeps the file when it is closed.
            self.features = torch.from_numpy(np.memmap(file, np.float32, "r+", shape=(len(self.labels), channels)))

    def __len__(self) -> int:
        return len(self.labels)


def write_features(
    encoder: Encoder,
    splits: list[PreparedSplit],
    path: Path,
    facts: dict[str, Any],
    batch_size: int,
    num_workers: int,
) -> int:
    """
    Writes the features of splits to a parquet file, which appears whole or not at all, one row group after the other.

    Columns: `feature` (list of float32), `label` (int64) and `class_name`, both empty where labels are not known,
    `file` (what a user knows the image or video by) and `split`. The file's metadata have `facts` as JSON under
    `vit_family`.

    Returns:
        The number of rows.

    Raises:
        UserError: as `feature_batches`, or if the file cannot be written.
    """
    schema = pa.schema(
        {
            "feature": pa.list_(pa.float32()),
            "label": pa.int64(),
            "class_name": pa.string(),
            "file": pa.string(),
            "split": pa.string(),
        }
    ).with_metadata({METADATA: json.dumps(facts)})
    count = 0
    with whole_file(path, mode="wb") as file, pa.parquet.ParquetWriter(file, schema) as writer:
        for split in splits:
            rows: list[pa.RecordBatch] = []
            for batch in feature_batches(encoder, split, batch_size, num_workers):
                rows.append(_rows(split, batch, schema))
                if sum(map(len, rows)) >= ROW_GROUP:
                    writer.write_table(pa.Table.from_batches(rows, schema))
                    rows = []
                count += len(batch.labels)
            if rows:
                writer.write_table(pa.Table.from_batches(rows, schema))
    return count


def _rows(split: PreparedSplit, batch: FeatureBatch, schema: pa.Schema) -> pa.RecordBatch:
    count, channels = batch.features.shape
    values = pa.array(batch.features.cpu().numpy().ravel())
    offsets = pa.array(np.arange(0, count * channels + 1, channels, dtype=np.int32))
    labels, classes = batch.labels.tolist(), split.classes
    columns = {
        "feature": pa.ListArray.from_arrays(offsets, values),
        "label": [None] * count if classes is None else labels,
        "class_name": [None] * count if classes is None else [classes[label] for label in labels],
        "file": [split.images.store.name(position) for position in batch.positions.tolist()],
        "split": [split.name] * count,
    }
    return pa.RecordBatch.from_pydict(columns, schema)

"""
Write the features of images or videos to a parquet file: for a search by similarity, a plot, or a classifier of one's
own.

A feature is the pooled output of a model without its head: the class token after the last norm, or the mean of the last
tokens, as the model's own classifier would read it. --pooling mean takes the mean of the tokens in any case. The model
is a folder or Hub id, whatever head it was saved with, or a variant with random weights.

Columns: feature (list of float32), label and class_name (empty where the data have no labels), file (the image's path,
or its row) and split. The file's metadata say what model and data they are of, as JSON under "vit_family".

Images are read, and features written, a few thousand at a time: memory does not grow with the data.

examples:
  vit-family features --model runs/simmim --dataset photos --output features.parquet
  vit-family features --model runs/timesformer --dataset clips.csv --output clips.parquet --device cuda
  vit-family features --model runs/simmim --dataset digits --splits test --pooling mean --output test.parquet

  import pandas, pyarrow.parquet
  features = pandas.read_parquet("features.parquet")
  pyarrow.parquet.read_schema("features.parquet").metadata[b"vit_family"]
"""

import argparse
import shlex
import sys
from pathlib import Path

from vit_family_launcher import library_versions

from ..data.load import input_geometry, load_splits
from ..errors import UserError
from ..evaluation.features import write_features
from ..files import check_writable
from ..loading import load_encoder
from ..notices import listed, say
from ..registry import modality_of
from .arguments import add_data_options, add_encoder_options, add_loading, read_data_options, read_overrides

DATA_FIELDS = (
    "dataset",
    "dataset_config_name",
    "dataset_revision",
    "image_column",
    "video_column",
    "label_column",
    "num_workers",
    "on_bad_image",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="VARIANT_OR_FOLDER_OR_HUB_ID", help="any model of images or clips"
    )
    add_loading(parser)
    add_data_options(parser, DATA_FIELDS)
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="splits to read (default: all)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="parquet file to write")
    parser.add_argument("--batch_size", type=int, default=64, help="images or clips at a time (default: 64)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    add_encoder_options(parser)


def run(args: argparse.Namespace) -> None:
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size} must be at least 1")
    if args.output.suffix != ".parquet":
        raise UserError(f"--output {args.output}: features are written as parquet, name it so")
    if args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder")
    check_writable(args.output.parent)
    config = read_data_options(args, DATA_FIELDS)
    overrides = read_overrides(args)
    encoder = load_encoder(
        args.model, args.device, args.revision, args.trust_remote_code, args.pooling, overrides, args.seed
    )
    splits, bad_images = load_splits(config, encoder.processor, args.splits)
    facts = {
        "model": args.model,
        "revision": args.revision,
        "overrides": overrides,
        "weights": encoder.weights,
        "pooling": encoder.pooling,
        "dataset": config.dataset,
        "dataset_revision": config.dataset_revision,
        "image_size": list(input_geometry(config, encoder.processor)[1]),
        "command": shlex.join(["vit-family", *sys.argv[1:]]),
        "versions": library_versions(),
    }
    count = write_features(encoder, splits, args.output, facts, args.batch_size, config.num_workers)
    for line in bad_images:
        say(line, error=True)
    kind = modality_of(encoder.processor).name
    names = listed(split.name for split in splits)
    say(f"{count} {kind} of {config.dataset} ({names}), {len(bad_images)} unreadable ones left out: {args.output}")

"""
Measure an image or video classifier on a data set: accuracy, top-5 accuracy, calibration, and what it confuses.

Videos are tested in several views, whose scores are averaged: clips x crops, by default as many as the model's authors take.

The output folder gets evaluation.json, which a model card is made from, confusion.png and per_class.csv.

examples:
  vit-family evaluate --model outputs/digits --dataset digits
  vit-family evaluate --model outputs/deit --dataset photos --eval_split val --output results
  vit-family evaluate --model outputs/timesformer --dataset clips.csv --views 4x3
  vit-family evaluate --model google/vit-base-patch16-224 --dataset ILSVRC/imagenet-1k --real_labels real.json
"""

import argparse
import csv
import io
import re
import shlex
import sys
import time
from pathlib import Path
from typing import get_args

from torch.utils.data import DataLoader

from ..cards import Evaluation
from ..data import DataConfig, input_geometry, load_evaluation
from ..errors import UserError
from ..evaluation import evaluate_model, read_valid_labels
from ..files import write_text
from ..image_sets import OnBadImage
from ..modeling.video_processing_vitf import VitfVideoProcessor
from ..plots import plot_confusion
from ..versions import library_versions
from .predict import load_classifier

# Fields of DataConfig that say what is evaluated on; the others concern training.
DATA_FIELDS = (
    "dataset",
    "dataset_config_name",
    "eval_split",
    "image_column",
    "video_column",
    "label_column",
    "max_eval_samples",
    "num_workers",
    "cache_megabytes",
    "on_bad_image",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="FOLDER_OR_HUB_ID", help="an image or video classifier")
    fields = DataConfig.__dataclass_fields__
    for name in DATA_FIELDS:
        default, text = fields[name].default, fields[name].metadata["help"]
        parser.add_argument(
            f"--{name}",
            type=type(default) if default is not None else int if name == "max_eval_samples" else str,
            default=default,
            required=name == "dataset",
            choices=get_args(OnBadImage) if name == "on_bad_image" else None,
            help=text if default is None or name == "dataset" else f"{text} (default: {default})",
        )
    parser.add_argument(
        "--eval_fraction",
        type=float,
        help="of data without a split for evaluation, the part that training with this fraction held out (default: all)",
    )
    parser.add_argument(
        "--views", metavar="CLIPSxCROPS", help="views of each video, such as 4x3 (default: the authors')"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images or clips at a time (default: 64)")
    parser.add_argument("--real_labels", metavar="JSON", help="list of the valid labels of each image (ImageNet-ReaL)")
    parser.add_argument("--output", type=Path, help="folder for the results (default: the model's, if it is one)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")


def _per_class_csv(labels: list[str], confusion, accuracies) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("class", "images", "accuracy"))
    for label, images, accuracy in zip(labels, confusion.sum(1), accuracies, strict=True):
        table.writerow((label, int(images), f"{accuracy:.6f}" if images else ""))
    return text.getvalue()


def read_views(text: str | None, processor) -> tuple[int, int] | None:
    """Clips and crops of `--views`, or those that a video processor names; None for images. UserError for anything else."""
    if not isinstance(processor, VitfVideoProcessor):
        if text is not None:
            raise UserError("--views is for video classifiers; this model classifies images")
        return None
    if text is None:
        return processor.num_views, processor.num_crops
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise UserError(f"--views {text}: expected clips x crops, such as 4x3")
    return int(match[1]), int(match[2])


def run(args: argparse.Namespace) -> None:
    if args.eval_fraction is not None and not 0 < args.eval_fraction < 1:
        raise UserError(f"--eval_fraction {args.eval_fraction} must lie between 0 and 1")
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size} must be at least 1")
    config = DataConfig(**{name: getattr(args, name) for name in DATA_FIELDS})
    output = args.output or Path(args.model)
    if args.output is None and not output.is_dir():
        raise UserError("name an --output folder: the model is on the Hub")
    model, processor = load_classifier(args.model, args.device)
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    views = read_views(args.views, processor)
    images, split, bad_images = load_evaluation(config, processor, labels, args.eval_fraction, views)
    valid = None
    if args.real_labels:
        valid = read_valid_labels(args.real_labels, [images.store.name(i) for i in range(len(images))])
    began = time.monotonic()
    # Views of a video are loaded together, and go through the model one after the other.
    loader = DataLoader(images, batch_size=args.batch_size, num_workers=config.num_workers)
    results = evaluate_model(
        model, loader, valid_labels=valid, view_average=getattr(processor, "view_average", "logits")
    )
    confusion, accuracies = results.pop("confusion"), results.pop("per_class_accuracy")
    plot_confusion(confusion, labels, output / "confusion.png")
    write_text(output / "per_class.csv", _per_class_csv(labels, confusion, accuracies))
    Evaluation(
        dataset=config.dataset,
        split=split,
        num_images=int(confusion.sum()),
        metrics=results,
        command=shlex.join(["vit-family", *sys.argv[1:]]),
        versions=library_versions(),
        seed=None,
        parameters=model.num_parameters(),
        image_size=list(input_geometry(config, processor)[1]),
        views=None if views is None else f"{views[0]}x{views[1]}",
        wall_seconds=round(time.monotonic() - began, 1),
    ).write(output)
    for line in bad_images:
        print(line, file=sys.stderr)
    kind = "images" if views is None else f"videos in {views[0]} x {views[1]} views"
    print(f"{int(confusion.sum())} {kind} of {config.dataset} ({split}), {len(bad_images)} unreadable ones left out")
    for name, value in results.items():
        print(f"  {name:<20} {value:.4f}")
    print(f"written: {output}/evaluation.json, confusion.png, per_class.csv")

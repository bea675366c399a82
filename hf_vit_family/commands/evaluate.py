"""
Measure an image or video classifier on a data set: accuracy, top-5 accuracy, calibration, and what it confuses.

Videos are tested in several views, whose scores are averaged: clips x crops, by default as many as the model's authors
take.

The output folder gets evaluation.json, which a model card is made from, confusion.png and per_class.csv.

--probe judges an encoder by its features instead, without training it: of any model folder or Hub id, whatever head it
was saved with, or of a variant with random weights, to compare with. knn takes the vote of the 20 training images whose
features are most similar, as DINO does. linear trains a linear classifier on the features; its learning rate is chosen
on a part of the training images, and the test images are used once. The output folder gets probe_knn.json or
probe_linear.json.

examples:
  vit-family evaluate --model outputs/digits --dataset digits
  vit-family evaluate --model outputs/deit --dataset photos --eval_split val --output results
  vit-family evaluate --model outputs/timesformer --dataset clips.csv --views 4x3
  vit-family evaluate --model google/vit-base-patch16-224 --dataset ILSVRC/imagenet-1k --real_labels real.json
  vit-family evaluate --probe knn --model runs/simmim --dataset photos
  vit-family evaluate --probe linear --model runs/simmim --dataset photos --max_train_samples 10000
  vit-family evaluate --probe knn --model cct_2_3x2_32 --set image_size=16 --dataset digits --output random
"""

import argparse
import csv
import io
import json
import re
import shlex
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from vit_family_launcher import library_versions

from ..data.class_names import model_classes
from ..data.load import DataConfig, input_geometry, load_evaluation, load_probe
from ..errors import UserError
from ..evaluation.evaluate import evaluate_model, read_valid_labels
from ..evaluation.features import FeatureCache, feature_batches
from ..evaluation.probes import LEARNING_RATES, LINEAR_PROBE, knn_probe, linear_probe
from ..explain.plots import plot_confusion
from ..files import check_writable, write_text
from ..loading import load_classifier, load_encoder
from ..modeling.video_processing_vitf import VitfVideoProcessor
from ..notices import notice, say
from ..publishing.cards import Evaluation, is_local
from ..registry import IMAGES, modality_of
from .arguments import add_data_options, add_encoder_options, add_loading, read_data_options, read_overrides
from .predict import is_regression

# Fields of DataConfig that say what is evaluated on; the others concern training.
DATA_FIELDS = (
    "dataset",
    "dataset_config_name",
    "dataset_revision",
    "eval_split",
    "image_column",
    "video_column",
    "label_column",
    "max_eval_samples",
    "num_workers",
    "cache_megabytes",
    "on_bad_image",
    "match_classes",
)
# Those that say what a probe learns from.
PROBE_FIELDS = ("train_split", "train_share", "max_train_samples")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="FOLDER_OR_HUB_ID", help="an image or video classifier; any model for --probe"
    )
    add_loading(parser)
    add_data_options(parser, DATA_FIELDS)
    parser.add_argument(
        "--eval_fraction",
        type=float,
        help="of data without a split for evaluation, the part that training with this fraction held out (default: "
        "all)",
    )
    parser.add_argument(
        "--views", metavar="CLIPSxCROPS", help="views of each video, such as 4x3 (default: the authors')"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images or clips at a time (default: 64)")
    parser.add_argument("--real_labels", metavar="JSON", help="list of the valid labels of each image (ImageNet-ReaL)")
    parser.add_argument("--output", type=Path, help="folder for the results (default: the model's, if it is one)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    group = parser.add_argument_group("Probes", "judge an encoder by its features; --model may also be a variant")
    group.add_argument(
        "--probe",
        choices=("knn", "linear"),
        help="knn: a vote of the nearest training images; linear: a linear classifier, for which the best of several "
        "learning rates is taken",
    )
    add_data_options(group, PROBE_FIELDS)
    group.add_argument("--k", type=int, help="neighbours that vote with --probe knn (default: 20)")
    group.add_argument(
        "--temperature", type=float, help="of their votes, exp(similarity / temperature) (default: 0.07)"
    )
    group.add_argument("--epochs", type=int, help="passes over the features with --probe linear (default: 90)")
    add_encoder_options(group)


def _per_class_csv(labels: list[str], confusion, accuracies) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("class", "images", "accuracy"))
    for label, images, accuracy in zip(labels, confusion.sum(1), accuracies, strict=True):
        table.writerow((label, int(images), f"{accuracy:.6f}" if images else ""))
    return text.getvalue()


def read_views(text: str | None, processor) -> tuple[int, int] | None:
    """
    Clips and crops of `--views`, or those that a video processor names; None for images. UserError for anything else.
    """
    if modality_of(processor) is IMAGES:
        if text is not None:
            raise UserError("--views is for video classifiers; this model classifies images")
        return None
    if not isinstance(processor, VitfVideoProcessor):
        raise UserError(
            f"{type(processor).__name__} does not say which frames it takes of a file: convert the model by "
            f"'vit-family convert'"
        )
    if text is None:
        return processor.num_views, processor.num_crops
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise UserError(f"--views {text}: expected clips x crops, such as 4x3")
    return int(match[1]), int(match[2])


def check_probe_options(args: argparse.Namespace) -> None:
    """Raises UserError for options that the chosen way of judging has no use for, or that lie outside their range."""
    defaults = {"train_split": DataConfig.train_split, "seed": 0, "overrides": []}
    only = {
        **dict.fromkeys((*PROBE_FIELDS, "pooling", "seed", "overrides"), ("knn", "linear")),
        "k": ("knn",),
        "temperature": ("knn",),
        "epochs": ("linear",),
    }
    for name, probes in only.items():
        if getattr(args, name) != defaults.get(name) and args.probe not in probes:
            option = "set" if name == "overrides" else name
            raise UserError(f"--{option} is for --probe {' or '.join(probes)}")
    for name in ("views", "real_labels"):
        if args.probe and getattr(args, name) is not None:
            raise UserError(f"--{name} is for classifiers: --probe {args.probe} takes one view, and the data's labels")
    if args.probe and args.match_classes != DataConfig.match_classes:
        raise UserError("--match_classes is for classifiers: a probe learns the classes of the data")
    for name in ("k", "epochs"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} must be at least 1")
    if args.temperature is not None and not 0 < args.temperature < float("inf"):
        raise UserError(f"--temperature {args.temperature} must be above 0")


def run(args: argparse.Namespace) -> None:
    if args.eval_fraction is not None and not 0 < args.eval_fraction < 1:
        raise UserError(f"--eval_fraction {args.eval_fraction} must lie between 0 and 1")
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size} must be at least 1")
    check_probe_options(args)
    config = read_data_options(args, (*DATA_FIELDS, *PROBE_FIELDS))
    output = args.output or Path(args.model)
    if args.output is None and not output.is_dir():
        raise UserError("name an --output folder: the model is no folder")
    check_writable(output)  # before the time for the measurement is spent
    if args.probe:
        run_probe(args, config, output)
        return
    model, processor = load_classifier(args.model, args.device, args.revision, args.trust_remote_code)
    if is_regression(model.config):
        raise UserError(f"{args.model} predicts values, not classes (problem_type regression): there is no accuracy")
    classes = model_classes(model.config, f"the model {args.model}")
    labels = list(classes.names)
    views = read_views(args.views, processor)
    images, split, bad_images = load_evaluation(config, processor, classes, args.eval_fraction, views)
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
    for line in bad_images:
        say(line, error=True)
    kind = "images" if views is None else f"videos in {views[0]} x {views[1]} views"
    say(f"{int(confusion.sum())} {kind} of {config.dataset} ({split}), {len(bad_images)} unreadable ones left out")
    for name, value in results.items():
        say(f"  {name:<20} {value:.4f}")
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
        dataset_is_local=is_local(config.dataset),
        wall_seconds=round(time.monotonic() - began, 1),
    ).write(output)
    say(f"written: {output}/evaluation.json, confusion.png, per_class.csv")


def run_probe(args: argparse.Namespace, config: DataConfig, output: Path) -> None:
    """Judges an encoder by its features, and writes `probe_knn.json` or `probe_linear.json`."""
    overrides = read_overrides(args)
    encoder = load_encoder(
        args.model, args.device, args.revision, args.trust_remote_code, args.pooling, overrides, args.seed
    )
    train, evaluation, bad_images = load_probe(config, encoder.processor, args.eval_fraction)
    began = time.monotonic()
    batches = partial(feature_batches, encoder, batch_size=args.batch_size, num_workers=config.num_workers)
    tested = list(batches(evaluation))
    queries = torch.cat([batch.features for batch in tested])
    labels = torch.cat([batch.labels for batch in tested])
    num_classes = len(train.classes or ())
    if args.probe == "knn":
        settings = {"k": args.k or 20, "temperature": args.temperature or 0.07}
        results = knn_probe(batches(train), queries, labels, num_classes, **settings)
    else:
        settings = {**LINEAR_PROBE, "epochs": args.epochs or LINEAR_PROBE["epochs"]}
        results = linear_probe(FeatureCache(batches(train)), queries, labels, num_classes, epochs=settings["epochs"])
        chosen = results["learning_rate"]
        if chosen in (LEARNING_RATES[0], LEARNING_RATES[-1]):
            notice(f"the best learning rate, {chosen:g}, is at the end of those that were tried")
    for line in bad_images:
        say(line, error=True)
    report = {
        "probe": args.probe,
        **results,
        "settings": settings,
        "model": args.model,
        "revision": args.revision,
        "overrides": overrides,
        "weights": encoder.weights,
        "pooling": encoder.pooling,
        "feature_size": queries.shape[1],
        "dataset": config.dataset,
        "train_split": train.name,
        "eval_split": evaluation.name,
        "num_eval": len(labels),
        "num_classes": num_classes,
        "image_size": list(input_geometry(config, encoder.processor)[1]),
        "command": shlex.join(["vit-family", *sys.argv[1:]]),
        "versions": library_versions(),
        "wall_seconds": round(time.monotonic() - began, 1),
    }
    kind = modality_of(encoder.processor).name
    tried = f"{args.probe} probe: {len(labels)} {kind} of {config.dataset} ({evaluation.name})"
    say(f"{tried}, {len(bad_images)} unreadable ones left out")
    for name, value in results["metrics"].items():
        say(f"  {name:<24} {value:.4f}")
    path = output / f"probe_{args.probe}.json"
    write_text(path, json.dumps(report, indent=2) + "\n")
    say(f"written: {path}")

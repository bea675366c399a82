"""
Train, measure, publish and look at a small classifier of handwritten digits, from the commands of this program.

The data are the 1,797 scans that scikit-learn ships: no network is needed. Each step is printed as the command that
does it, so that the demo is also a tour.

examples:
  vit-family demo --output demo
"""

import argparse
import shlex
from pathlib import Path

from vit_family_launcher import main

from ..data.sources import open_source
from ..errors import UserError
from ..files import check_writable
from ..notices import say

NUM_IMAGES = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR", help="new folder (default: demo)")


def run(args: argparse.Namespace) -> int:
    output = args.output
    if output.exists():
        raise UserError(f"{output} exists; remove it, or choose another folder with --output")
    check_writable(output)
    images = save_images(output / "images")
    model, published = output / "model", output / "published"
    for argv in (
        ["train", "--recipe", "digits", "--output", model],
        ["evaluate", "--model", model, "--dataset", "digits", "--output", output / "evaluation"],
        ["publish", model, "you/digits", "--license", "apache-2.0", "--dry-run", "--stage", published],
        ["attend", *images, "--model", published, "--output", output / "attention.png"],
        ["predict", *images, "--model", published, "--top", "1"],
    ):
        command = [str(word) for word in argv]
        say(f"\n$ vit-family {shlex.join(command)}")
        if code := main(command):
            return code
    say("\nThe same folder through transformers' Auto classes and pipeline:")
    for path, guess in zip(images, reload(published, images), strict=True):
        say(f"  {path.name}: {guess}")
    say(f"\nEverything is in {output}/")
    for text, path in (
        ("model, processor and records", model),
        ("training curves", model / "curves.png"),
        ("confusion matrix", output / "evaluation" / "confusion.png"),
        ("attention", output / "attention.png"),
        ("what a Hub repository would hold, with its model card", published / "README.md"),
    ):
        say(f"  {path}  {text}")
    return 0


def save_images(folder: Path) -> list[Path]:
    """Writes the first held-out digits as PNG files, named after what they show."""
    folder.mkdir(parents=True)
    held_out = open_source("digits", None, None, None).open("test")
    paths = [folder / f"{index}_is_{held_out.classes[held_out.labels[index]]}.png" for index in range(NUM_IMAGES)]
    for index, path in enumerate(paths):
        held_out.read(index).save(path)
    return paths


def reload(folder: Path, images: list[Path]) -> list[str]:
    """Classifies the images by a fresh `AutoModelForImageClassification` in a pipeline."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

    classify = pipeline(
        "image-classification",
        trust_remote_code=False,
        model=AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=False),
        image_processor=AutoImageProcessor.from_pretrained(folder, trust_remote_code=False),
    )
    return [f"{best['label']} ({best['score']:.1%})" for best, *_ in classify([str(path) for path in images])]

"""
Train, measure, publish and look at a small classifier of handwritten digits, from the commands of this program.

The data are the 1,797 scans that scikit-learn ships: no network is needed. Each step is printed as the command that does
it, so that the demo is also a tour.

examples:
  vit-family demo --output demo
"""

import argparse
import shlex
from pathlib import Path

from vit_family_launcher import main

from ..errors import UserError
from ..sources import open_source

NUM_IMAGES = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR", help="new folder (default: demo)")


def run(args: argparse.Namespace) -> int:
    output = args.output
    if output.exists():
        raise UserError(f"{output} exists; remove it, or choose another folder with --output")
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
        print(f"\n$ vit-family {shlex.join(command)}", flush=True)
        if code := main(command):
            return code
    print("\nThe same folder through transformers' Auto classes and pipeline:")
    for path, guess in zip(images, reload(published, images), strict=True):
        print(f"  {path.name}: {guess}")
    print(f"\nEverything is in {output}/")
    for text, path in (
        ("model, processor and records", model),
        ("training curves", model / "curves.png"),
        ("confusion matrix", output / "evaluation" / "confusion.png"),
        ("attention", output / "attention.png"),
        ("what a Hub repository would hold, with its model card", published / "README.md"),
    ):
        print(f"  {path}  {text}")
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
    """What a fresh `AutoModelForImageClassification` in a pipeline says to the images."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

    classify = pipeline(
        "image-classification",
        model=AutoModelForImageClassification.from_pretrained(folder),
        image_processor=AutoImageProcessor.from_pretrained(folder),
    )
    return [f"{best['label']} ({best['score']:.1%})" for best, *_ in classify([str(path) for path in images])]

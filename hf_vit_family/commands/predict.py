"""
Classify images or videos with a model folder or a Hub id: the most probable labels of each. A model whose labels do not
exclude each other gives each a probability of its own, and a regression model gives its values as they are.

Of several files, those that cannot be read are listed on standard error, and the exit code is 1.

examples:
  vit-family predict cat.jpg dog.png --model outputs/deit
  vit-family predict clip.mp4 --model outputs/timesformer
  vit-family predict cat.jpg --model google/vit-base-patch16-224 --top 3
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm
from transformers import (
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..data.images import read_image
from ..errors import UserError
from ..loading import load_classifier
from ..notices import say
from ..registry import CLIPS, modality_of
from .arguments import add_loading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="image files, or video files for a video classifier")
    parser.add_argument("--model", required=True, metavar="FOLDER_OR_HUB_ID", help="an image or video classifier")
    add_loading(parser)
    parser.add_argument("--top", type=int, default=5, help="labels, or values, to show for each file (default: 5)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")


def read_input(path: str, processor: BaseImageProcessor) -> Image.Image | str:
    """
    What the processor takes: a decoded image; of a video the path, since the processor says which frames are needed.
    """
    if modality_of(processor) is CLIPS:
        return path
    return read_image(path, num_channels=len(processor.image_mean))


def is_regression(config: PreTrainedConfig) -> bool:
    """
    Whether a model predicts values: its configuration says so, or has one output and says nothing, as its loss takes
    it.
    """
    return config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1)


def classify(
    source: Image.Image | str, classifier: PreTrainedModel, processor: BaseImageProcessor, top: int
) -> list[tuple[str, float]]:
    """
    The `top` labels with the highest probabilities, and those, in descending order. Of a regression the first `top`
    outputs and their values, in the model's order.
    """
    inputs = processor(source, return_tensors="pt").to(classifier.device, classifier.dtype)
    with torch.inference_mode():
        logits = classifier(**inputs).logits[0].float()
    if not logits.isfinite().all():
        raise UserError("the model's outputs are not finite: its weights are broken, or its precision is too low")
    config, count = classifier.config, min(top, classifier.config.num_labels)
    if is_regression(config):
        values, labels = logits[:count], torch.arange(count)
    else:
        independent = config.problem_type == "multi_label_classification"
        values, labels = (logits.sigmoid() if independent else logits.softmax(-1)).topk(count)
    return [(config.id2label[label], value) for label, value in zip(labels.tolist(), values.tolist(), strict=True)]


def run(args: argparse.Namespace) -> int:
    """Returns 1 where some of several files cannot be read; standard error has a line for each of them."""
    if args.top < 1:
        raise UserError(f"--top {args.top} is too small; show at least 1 label")
    for path in args.files:  # before seconds are spent on loading a model
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file")
    classifier, processor = load_classifier(args.model, args.device, args.revision, args.trust_remote_code)
    lines, failures = [], []
    for path in tqdm(args.files, desc="files", unit="file", disable=len(args.files) == 1):
        try:
            predictions = classify(read_input(path, processor), classifier, processor, args.top)
        except ValueError as error:  # a broken file, or such as a wrong number of channels, which does not name it
            failure = str(error) if path in str(error) else f"{path}: {error}"
            if len(args.files) == 1:
                raise UserError(failure) from error
            failures.append(" ".join(failure.split()))
            continue
        lines += [path, *(f"  {probability:.4f}  {' '.join(str(label).split())}" for label, probability in predictions)]
    if lines:
        say("\n".join(lines))
    for failure in failures:
        say(f"vit-family predict: {failure}", error=True)
    return int(bool(failures))

"""
Classify images or videos with a model folder or a Hub id: the most probable labels of each.

examples:
  vit-family predict cat.jpg dog.png --model outputs/deit
  vit-family predict clip.mp4 --model outputs/timesformer
  vit-family predict cat.jpg --model google/vit-base-patch16-224 --top 3
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    StrictDataclassError,
)
from PIL import Image
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
    BaseImageProcessor,
    PreTrainedModel,
)
from transformers.video_processing_utils import BaseVideoProcessor

from ..clean_process import quiet_loading
from ..errors import UserError
from ..images import read_image

# What from_pretrained raises for files that are missing, damaged, or of another kind.
_LOADING_ERRORS = (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError, StrictDataclassError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="image files, or video files for a video classifier")
    parser.add_argument("--model", required=True, metavar="FOLDER_OR_HUB_ID", help="an image or video classifier")
    parser.add_argument("--top", type=int, default=5, help="labels to show for each file (default: 5)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")


def _has_file(model: str, name: str) -> bool:
    """Whether a folder, or else a repository on the Hub, has a file. Raises UserError if there is neither."""
    if Path(model).is_dir():
        return (Path(model) / name).is_file()
    try:
        hf_hub_download(model, name)
    except HFValidationError as error:
        raise UserError(f"--model {model}: no such folder") from error
    except LocalEntryNotFoundError as error:
        raise UserError(f"--model {model}: no such folder, and the Hub cannot be reached") from error
    except EntryNotFoundError:
        return False
    except HfHubHTTPError as error:  # no such repository, or one that asks for a token
        raise UserError(f"--model {model}: no such folder, and no model on the Hub that you can read") from error
    return True


def _load(auto_class: type, model: str, **options: Any) -> Any:
    try:
        with quiet_loading():
            return auto_class.from_pretrained(model, **options)
    except _LOADING_ERRORS as error:
        # transformers' messages go on for a screen; the first line says what is wrong.
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(f"cannot load {model}: {reason}") from error


def load_classifier(model: str, device: str) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    An image or video classifier in evaluation mode on a device, and its processor, which says what it classifies.

    Args:
        model: A folder or a Hub id.
        device: A name that `torch.device` knows.

    Raises:
        UserError: if the configuration, a weight, the processor or the device is missing or broken.
    """
    if not _has_file(model, "config.json"):
        raise UserError(f"{model} is not a model: it has no config.json")
    if _has_file(model, "preprocessor_config.json"):
        processor_class, model_class = AutoImageProcessor, AutoModelForImageClassification
    elif _has_file(model, "video_preprocessor_config.json"):
        processor_class, model_class = AutoVideoProcessor, AutoModelForVideoClassification
    else:
        raise UserError(
            f"{model} has no preprocessor_config.json; create_processor(VARIANT).save_pretrained(FOLDER) writes it"
        )
    processor = _load(processor_class, model)
    classifier, info = _load(model_class, model, output_loading_info=True, ignore_mismatched_sizes=True)
    if info["mismatched_keys"]:
        key, found, expected = min(info["mismatched_keys"])
        raise UserError(f"{model}: {key} is {tuple(found)}, but config.json makes it {tuple(expected)}")
    if info["missing_keys"]:
        raise UserError(f"{model} is no trained classifier: it has no weights for {min(info['missing_keys'])}")
    try:
        return classifier.to(device).eval(), processor
    except (RuntimeError, AssertionError) as error:  # an unknown name, no such device, torch built without it
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from error


def read_input(path: str, processor: BaseImageProcessor) -> Image.Image | str:
    """What the processor takes: a decoded image; of a video the path, since the processor says which frames are needed."""
    return path if isinstance(processor, BaseVideoProcessor) else read_image(path)


def classify(
    source: Image.Image | str, classifier: PreTrainedModel, processor: BaseImageProcessor, top: int
) -> list[tuple[str, float]]:
    """The `top` labels with the highest probabilities, and those, in descending order."""
    inputs = processor(source, return_tensors="pt").to(classifier.device, classifier.dtype)
    with torch.inference_mode():
        logits = classifier(**inputs).logits[0].float()
    config = classifier.config
    independent = config.problem_type == "multi_label_classification" or config.num_labels == 1
    probabilities = logits.sigmoid() if independent else logits.softmax(-1)
    values, labels = probabilities.topk(min(top, config.num_labels))
    return [(config.id2label[label], value) for label, value in zip(labels.tolist(), values.tolist(), strict=True)]


def run(args: argparse.Namespace) -> None:
    if args.top < 1:
        raise UserError(f"--top {args.top} is too small; show at least 1 label")
    for path in args.files:  # before seconds are spent on loading a model
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file")
    classifier, processor = load_classifier(args.model, args.device)
    lines = []
    for path in tqdm(args.files, desc="files", unit="file", disable=len(args.files) == 1):
        source = read_input(path, processor)
        try:
            predictions = classify(source, classifier, processor, args.top)
        except UserError:  # of a video, which names it
            raise
        except ValueError as error:  # such as a wrong number of channels
            raise UserError(f"{path}: {error}") from error
        lines += [path, *(f"  {probability:.4f}  {label}" for label, probability in predictions)]
    print("\n".join(lines))

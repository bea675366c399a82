"""
Show what an image or video classifier attends to: of images as one PNG, of a video as a PNG of its frames and a GIF.
Of a masked autoencoder, show what it draws where it did not look.

rollout         how much of each part of the image arrives at the head (Abnar & Zuidema 2020)
relevance       which parts speak for each of the most probable classes (Chefer et al. 2021)
maps            the attention of the class token in every layer and head (images only)
reconstruction  what was hidden of an image, and what a model that --objective mae trained makes of it (He et al. 2022);
                one that predicts normalised pixels is given the mean and deviation of each patch

examples:
  vit-family attend cat.jpg --model outputs/deit
  vit-family attend cat.jpg dog.jpg --model outputs/deit --method relevance --top 3
  vit-family attend cat.jpg --model outputs/deit --method maps --layer 12 --output layer12.png
  vit-family attend cat.jpg --model runs/mae --method reconstruction --seed 1 --output cat_completed.png
  vit-family attend clip.mp4 --model outputs/timesformer --output clip.png
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from ..data.images import read_image
from ..errors import UserError
from ..explain.attention_maps import (
    attention_maps,
    attention_rollout,
    class_relevance,
    contact_sheet,
    heat_picture,
    overlay,
    to_picture,
)
from ..explain.reconstruction import reconstruct
from ..explain.video_attention_maps import overlays, save_gif, save_sheet, to_pictures, video_relevance, video_rollout
from ..files import check_writable
from ..loading import load_autoencoder, load_classifier
from ..notices import say
from ..registry import CLIPS, modality_of
from .arguments import add_loading

Row = list[tuple[str, Image.Image] | None]
# From normalised pixels (C, H, W) to a picture.
Draw = Callable[[torch.Tensor], Image.Image]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="image files, or one video file for a video classifier"
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="FOLDER_OR_HUB_ID",
        help="an image or video classifier; for --method reconstruction a masked autoencoder",
    )
    add_loading(parser)
    parser.add_argument("--method", choices=METHODS, default="rollout", help="what to show (default: rollout)")
    parser.add_argument("--top", type=int, default=2, help="classes to explain with --method relevance (default: 2)")
    parser.add_argument("--layer", type=int, help="show only this layer's maps, counted from 1")
    parser.add_argument("--head", type=int, help="show only this head's maps, counted from 1")
    parser.add_argument(
        "--seed", type=int, help="with --method reconstruction: hide other patches, which this number chooses"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("attention.png"),
        help="of a video, the GIF is next to it (default: attention.png)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")


def _check_finite(logits: torch.Tensor) -> None:
    if not logits.isfinite().all():
        raise UserError("the model's outputs are not finite: its weights are broken, or its precision is too low")


def _label(model, logits: torch.Tensor, index: int) -> str:
    _check_finite(logits)
    return f"{model.config.id2label[index]}  {logits.float().softmax(-1)[index]:.1%}"


def _rollout_rows(model, pixel_values: torch.Tensor, draw: Draw, args: argparse.Namespace) -> list[Row]:
    logits, heat = attention_rollout(model, pixel_values)
    picture = draw(pixel_values[0])
    return [[("input", picture), (_label(model, logits[0], int(logits[0].argmax())), overlay(picture, heat[0]))]]


def _relevance_rows(model, pixel_values: torch.Tensor, draw: Draw, args: argparse.Namespace) -> list[Row]:
    with torch.no_grad():
        best = model(pixel_values).logits[0].topk(min(args.top, model.config.num_labels)).indices
    picture = draw(pixel_values[0])
    row: Row = [("input", picture)]
    for index in best:
        logits, heat = class_relevance(model, pixel_values, index[None])
        row.append((_label(model, logits[0], int(index)), overlay(picture, heat[0])))
    return [row]


def _chosen(option: str, number: int | None, count: int) -> range:
    """Indices that an option counted from 1 selects; all without it."""
    if number is None:
        return range(count)
    if not 1 <= number <= count:
        raise UserError(f"--{option} {number}: the model has {count}, counted from 1")
    return range(number - 1, number)


def _map_rows(model, pixel_values: torch.Tensor, draw: Draw, args: argparse.Namespace) -> list[Row]:
    logits, maps = attention_maps(model, pixel_values)
    _check_finite(logits)
    rows = []
    for layer in _chosen("layer", args.layer, len(maps)):
        heads = _chosen("head", args.head, maps[layer].shape[1])
        panels = [(f"layer {layer + 1}, head {head + 1}", heat_picture(maps[layer][0, head])) for head in heads]
        rows.append([None if rows else ("input", draw(pixel_values[0])), *panels])
    return rows


def _reconstruction_rows(model, pixel_values: torch.Tensor, draw: Draw, args: argparse.Namespace) -> list[Row]:
    parts = reconstruct(model, pixel_values, args.seed)
    height, width = parts.hidden.shape[-2:]
    shown = {
        "input": pixel_values,
        # 0 is the mean colour
        f"{parts.hidden.float().mean():.0%} hidden": pixel_values[..., :height, :width].masked_fill(parts.hidden, 0),
        "prediction": parts.prediction,
        "completed": parts.completed,
    }
    return [[(title, draw(pixels[0])) for title, pixels in shown.items()]]


# Method: rows of the sheet for an image, and the edge of a picture in inches.
METHODS = {
    "rollout": (_rollout_rows, 2.4),
    "relevance": (_relevance_rows, 2.4),
    "maps": (_map_rows, 1.3),
    "reconstruction": (_reconstruction_rows, 2.4),
}


def show_video(model, processor, args: argparse.Namespace) -> None:
    """Writes the frames of a video under its rollout, or its relevance for each of the best classes."""
    if len(args.files) > 1 or args.method == "maps":
        raise UserError("of videos, one at a time is shown, with --method rollout or relevance")
    try:
        clip = processor(args.files[0], return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    except ValueError as error:  # a broken file, or such as a wrong number of channels
        raise UserError(str(error)) from error
    pictures = to_pictures(clip[0], processor.image_mean, processor.image_std)
    rows = [("input", pictures)]
    if args.method == "rollout":
        logits, heat = video_rollout(model, clip)
        rows.append((_label(model, logits[0], int(logits[0].argmax())), overlays(pictures, heat[0])))
    else:
        with torch.no_grad():
            best = model(clip).logits[0].topk(min(args.top, model.config.num_labels)).indices
        for index in tqdm(best, desc="classes", unit="class", disable=len(best) == 1):
            logits, heat = video_relevance(model, clip, index[None])
            rows.append((_label(model, logits[0], int(index)), overlays(pictures, heat[0])))
    save_sheet(rows, args.output)
    save_gif(rows, args.output.with_suffix(".gif"))
    say(args.output)
    say(args.output.with_suffix(".gif"))


def run(args: argparse.Namespace) -> None:
    if args.method != "maps" and (args.layer is not None or args.head is not None):
        raise UserError("--layer and --head choose among --method maps")
    if args.method != "reconstruction" and args.seed is not None:
        raise UserError("--seed chooses what --method reconstruction hides")
    if args.top < 1:
        raise UserError(f"--top {args.top} is too small; explain at least 1 class")
    if args.output.suffix.lower() != ".png":
        raise UserError(f"--output {args.output}: the picture is a PNG, name it so")
    check_writable(args.output.parent)
    for path in args.files:
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file")
    load = load_autoencoder if args.method == "reconstruction" else load_classifier
    model, processor = load(args.model, args.device, args.revision, args.trust_remote_code)
    if modality_of(processor) is CLIPS:
        show_video(model, processor, args)
        return
    pictures = [read_image(path, num_channels=len(processor.image_mean)) for path in args.files]
    draw = partial(to_picture, mean=processor.image_mean, std=processor.image_std)
    make_rows, edge = METHODS[args.method]
    sheet = []
    for image in tqdm(pictures, desc="images", unit="image", disable=len(pictures) == 1):
        try:
            pixel_values = processor(image, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
        except ValueError as error:  # such as a wrong number of channels
            raise UserError(str(error)) from error
        sheet += make_rows(model, pixel_values, draw, args)
    contact_sheet(sheet, args.output, edge)
    say(args.output)

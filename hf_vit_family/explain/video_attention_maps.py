"""
What a video model looks at, in space and time: attention rollout, and the relevance for a class, of the patches of all
frames.

The attention of a layer is laid out as one matrix over the tokens of the clip, whether it goes over time, over space,
or over both, so that tokens can be followed through layers that divide them.

Shapes: B batch, T frames, N patches of a frame, P tokens before the patches, h heads, rows x columns grid of patches, H
x W pixels. Tokens of a clip are P, then frame by frame T * N.
"""

import itertools
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import PreTrainedModel

from ..errors import UserError
from ..modeling.configuration_vitf import pair
from .attention_maps import AttentionRecorder, contact_sheet, gradient_rollout, overlay, rollout, to_picture

# Frames in a row of the contact sheet; a GIF has all.
SHEET_COLUMNS = 8


def lay_out(weights: torch.Tensor, batch: int, num_frames: int, num_patches: int, num_prefix: int) -> torch.Tensor:
    """
    The attention of a layer as one matrix over the tokens of the clip.

    Args:
        weights: Over space and time (B, P + T * N, P + T * N), over space (B * T, P + N, P + N), where all frames share
            a prefix token, or over time (B * N, T, T), which prefix tokens take no part in.

    Returns:
        (B, P + T * N, P + T * N). Over space, a prefix token has the mean over the frames; over time, nothing.

    Raises:
        UserError: for an attention over other tokens, such as those of windows, or one that may be either.
    """
    total = num_prefix + num_frames * num_patches
    if weights.shape == (batch, total, total):
        return weights
    over_space = weights.shape == (batch * num_frames, num_prefix + num_patches, num_prefix + num_patches)
    over_time = weights.shape == (batch * num_patches, num_frames, num_frames)
    if over_space == over_time:
        raise UserError(
            f"an attention map of {weights.shape[1]} x {weights.shape[2]} tokens cannot be laid out on {num_frames} "
            f"frames of {num_patches} patches: it goes over windows or pooled keys, or over space or time alike"
        )
    matrix = weights.new_zeros(batch, total, total)
    between = matrix[:, num_prefix:, num_prefix:].unflatten(2, (num_frames, num_patches))
    between = between.unflatten(1, (num_frames, num_patches))  # (B, T, N, T, N), a view
    if over_time:
        places = weights.unflatten(0, (batch, num_patches))
        between.diagonal(dim1=2, dim2=4).copy_(places.permute(0, 2, 3, 1))
        return matrix
    frames = weights.unflatten(0, (batch, num_frames))
    between.diagonal(dim1=1, dim2=3).copy_(frames[:, :, num_prefix:, num_prefix:].permute(0, 2, 3, 1))
    matrix[:, :num_prefix, :num_prefix] = frames[:, :, :num_prefix, :num_prefix].mean(1)
    matrix[:, :num_prefix, num_prefix:] = frames[:, :, :num_prefix, num_prefix:].transpose(1, 2).flatten(2) / num_frames
    matrix[:, num_prefix:, :num_prefix] = frames[:, :, num_prefix:, :num_prefix].flatten(1, 2)
    return matrix


def _read_out(model: PreTrainedModel, weights: torch.Tensor) -> torch.Tensor:
    """
    What the head's input attends to, (..., M, M) to (..., M): the row of the class token, else the mean over patches.
    """
    prefix = model.base_model.num_prefix_tokens
    if prefix == 0 or getattr(model.config, "pooling", "cls") != "cls":
        return weights[..., prefix:, :].mean(-2)
    return weights[..., 0, :]


def _heat(model: PreTrainedModel, pixel_values: torch.Tensor, maps: list[torch.Tensor], follow) -> torch.Tensor:
    """
    Follows tokens through maps that are averaged over heads, and reads out what the head's input has of each patch.

    Args:
        maps: Of each layer (A, M, M). follow: `rollout` or `gradient_rollout` of such maps, (A, 1, M, M).

    Returns:
        (B, T, rows, columns).
    """
    batch, num_frames, _, height, width = pixel_values.shape
    strides, frame_stride = pair(model.config.stage_strides[-1]), model.config.frame_stride
    rows, columns = math.ceil(height / strides[0]), math.ceil(width / strides[1])
    num_groups = num_frames // frame_stride  # where a patch reaches over several frames, these are as one
    num_patches, num_prefix = rows * columns, model.base_model.num_prefix_tokens
    alone = (batch * num_groups, num_prefix + num_patches, num_prefix + num_patches)
    over_groups = (batch, num_prefix + num_groups, num_prefix + num_groups)
    within = list(itertools.takewhile(lambda weights: weights.shape == alone, maps))
    after = maps[len(within) :]
    if within and all(weights.shape == over_groups for weights in after):
        # Frames do not meet before the end, where all count alike, or layers attend to what was read out of each.
        heat = _read_out(model, follow(within))[..., num_prefix:].unflatten(0, (batch, num_groups))
        shares = _read_out(model, follow(after))[..., num_prefix:, None] if after else 1 / num_groups
        heat = heat * shares
    else:
        heat = _read_out(model, follow([lay_out(m, batch, num_groups, num_patches, num_prefix) for m in maps]))
        heat = heat[..., num_prefix:]
    return heat.reshape(batch, num_groups, rows, columns).repeat_interleave(frame_stride, dim=1)


def video_rollout(model: PreTrainedModel, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Attention rollout (arXiv 2005.00928) over space and time.

    Args:
        pixel_values: (B, T, C, H, W).

    Returns:
        Logits (B, num_labels), and the share of each patch in the head's input, (B, T, rows, columns).

    Raises:
        UserError: if the model's attention cannot be laid out on the frames.
    """
    with torch.no_grad(), AttentionRecorder(model) as recorder:
        logits = model(pixel_values).logits
    maps = [attention.mean(1) for attention in recorder.maps]
    return logits, _heat(model, pixel_values, maps, lambda layers: rollout([m[:, None] for m in layers]))


def video_relevance(
    model: PreTrainedModel, pixel_values: torch.Tensor, classes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Which patches speak for a class (Chefer et al. 2021, arXiv 2103.15679), over space and time.

    Args:
        pixel_values: (B, T, C, H, W). classes: (B,) indices.

    Returns:
        Logits (B, num_labels), and the relevance of each patch, (B, T, rows, columns).

    Raises:
        UserError: if the model's attention cannot be laid out on the frames.
    """
    with torch.enable_grad(), AttentionRecorder(model) as recorder:
        logits = model(pixel_values.detach().clone().requires_grad_()).logits
        score = logits.gather(1, classes[:, None]).sum()
        gradients = torch.autograd.grad(score, recorder.maps)
    maps = [(g * m.detach()).clamp(min=0).mean(1) for m, g in zip(recorder.maps, gradients, strict=True)]

    def follow(layers: list[torch.Tensor]) -> torch.Tensor:
        return gradient_rollout([m[:, None] for m in layers], [torch.ones_like(m[:, None]) for m in layers])

    return logits.detach(), _heat(model, pixel_values, maps, follow)


def to_pictures(pixel_values: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> list[Image.Image]:
    """The frames that the model saw, of a normalised clip (T, C, H, W)."""
    return [to_picture(frame, mean, std) for frame in pixel_values]


def overlays(pictures: Sequence[Image.Image], heat: torch.Tensor) -> list[Image.Image]:
    """Frames coloured by maps (T, rows, columns), from the smallest to the largest value of the whole clip."""
    limits = (float(heat.min()), float(heat.max()))
    return [overlay(picture, frame, limits) for picture, frame in zip(pictures, heat, strict=True)]


def save_gif(rows: Sequence[tuple[str, Sequence[Image.Image]]], path: str | Path, seconds: float = 3.0) -> None:
    """
    Writes rows of frames next to each other as one GIF that repeats; the file appears whole or not at all.

    Args:
        rows: (title, frames), all of one size and number; a GIF shows no titles. seconds: For all frames.
    """
    path = Path(path)
    frames = []
    for pictures in zip(*(pictures for _, pictures in rows), strict=True):
        frame = Image.new("RGB", (sum(p.width for p in pictures), pictures[0].height))
        left = 0
        for picture in pictures:
            frame.paste(picture, (left, 0))
            left += picture.width
        frames.append(frame)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / "frames.gif"
        duration = round(1000 * seconds / len(frames))
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=duration, loop=0)
        os.replace(temporary, path)


def save_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], path: str | Path, edge: float = 1.6) -> None:
    """
    Writes rows of frames, no more than `SHEET_COLUMNS` that are evenly spread, as one PNG.

    Args:
        rows: (title, frames). edge: Of a frame, in inches.
    """
    count = len(rows[0][1])
    shown = sorted({round(i * (count - 1) / max(SHEET_COLUMNS - 1, 1)) for i in range(SHEET_COLUMNS)})
    panels = [[(title if i == shown[0] else f"frame {i + 1}", pictures[i]) for i in shown] for title, pictures in rows]
    contact_sheet(panels, path, edge)

"""
What a model looks at: attention maps, attention rollout, and the relevance of the image's parts for a class.

Shapes: B batch, L layers, h heads, N query tokens, M key tokens, rows x columns grid of patch tokens, H x W pixels.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

from ..errors import UserError
from .plots import save_figure

Maps = Sequence[torch.Tensor]


def _attention_layers(model: PreTrainedModel) -> list[tuple[nn.Module, int]]:
    """Attention layers in the order of the network, each with the position of the map among its outputs."""
    specs = (model.base_model._can_record_outputs or {}).get("attentions", [])
    recorders = [
        spec if isinstance(spec, OutputRecorder) else OutputRecorder(spec, index=1)
        for spec in (specs if isinstance(specs, list) else [specs])
    ]
    layers = [
        (module, recorder.index)
        for name, module in model.named_modules()
        for recorder in recorders
        if isinstance(module, recorder.target_class)
        and (recorder.layer_name is None or recorder.layer_name in f".{name}.")
    ]
    if not layers or not getattr(model, "has_attention_maps", True):
        raise UserError(f"{type(model).__name__} has no attention layer that gives its map")
    return layers


class AttentionRecorder:
    """
    Records every attention map of a model while open, whatever attention is configured, and leaves no hooks.

    ```python
    with AttentionRecorder(model) as recorder:
        logits, maps = recorder(pixel_values)
    ```

    `maps` after a forward pass: for each layer, in order, (B, h, N, M); on the graph where gradients are on.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.maps: list[torch.Tensor] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "AttentionRecorder":
        for module, index in _attention_layers(self.model):
            self._handles.append(module.register_forward_pre_hook(self._ask, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._keeper(index)))
        self._handles.append(self.model.register_forward_pre_hook(lambda *_: self.maps.clear()))
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @staticmethod
    def _ask(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, {**kwargs, "output_attentions": True}

    def _keeper(self, index: int):
        def keep(module: nn.Module, args: tuple, output: tuple) -> None:
            self.maps.append(output[index])

        return keep

    def stacked(self) -> torch.Tensor:
        """All maps as (B, L, h, N, M). UserError where layers differ in shape: use `maps`, layer by layer, there."""
        shapes = {tuple(attention.shape) for attention in self.maps}
        if len(shapes) > 1:
            raise UserError(f"the attention maps of {type(self.model).__name__} differ in shape from layer to layer")
        return torch.stack(self.maps, dim=1)

    def __call__(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, num_labels) of images (B, num_channels, H, W), and all maps as (B, L, h, N, M)."""
        logits = self.model(pixel_values).logits
        return logits, self.stacked()


def _check_square(maps: Maps, batch: int, method: str) -> None:
    """UserError unless every map is from all tokens of an image to all, the same in every layer."""
    shapes = {(attention.shape[0], *attention.shape[2:]) for attention in maps}
    tokens = maps[0].shape[-1]
    if shapes != {(batch, tokens, tokens)}:
        raise UserError(
            f"{method} follows tokens through layers that all attend to the same tokens; this model's maps are of "
            f"{', '.join(f'{n} x {m}' for _, n, m in sorted(shapes))} tokens: the method 'maps' may show them"
        )


def rollout(maps: Maps) -> torch.Tensor:
    """
    Attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928, section 3): how much of each input token arrives in each
    output token, if every layer passes on half of a token itself and half of what it attends to, averaged over heads.

    Args:
        maps: For each layer (B, h, N, N), rows summing to 1.

    Returns:
        (B, N, N): for each output token its share of the input tokens; rows sum to 1.
    """
    tokens = maps[0].shape[-1]
    identity = torch.eye(tokens, device=maps[0].device, dtype=maps[0].dtype)
    result = identity.expand(maps[0].shape[0], -1, -1)
    for attention in maps:
        mixing = (attention.mean(1) + identity) / 2
        result = torch.matmul(mixing / mixing.sum(-1, keepdim=True), result)
    return result


def gradient_rollout(maps: Maps, gradients: Maps) -> torch.Tensor:
    """
    Relevance of input tokens for a score (Chefer et al. 2021, arXiv 2103.15679, equations 5 and 6): each layer adds
    what it attends to, weighted by the positive part of the score's gradient.

    Args:
        maps: For each layer (B, h, N, N). gradients: Of the score by each of them.

    Returns:
        (B, N, N): for each output token the relevance of the input tokens.
    """
    tokens = maps[0].shape[-1]
    result = torch.eye(tokens, device=maps[0].device, dtype=maps[0].dtype).expand(maps[0].shape[0], -1, -1)
    for attention, gradient in zip(maps, gradients, strict=True):
        result = result + torch.matmul((gradient * attention).clamp(min=0).mean(1), result)
    return result


def read_out(model: PreTrainedModel, weights: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """
    What the head's input attends to in an image of H = `height`, W = `width` pixels: (..., N, M) to (..., M). That is
    the row of the class token, the mean over class and distillation token, or the mean over the patch tokens where
    there is no class token, or where it has not joined them yet.
    """
    prefix, queries = model.base_model.num_prefix_tokens, weights.shape[-2]
    if queries == 1:  # class attention
        return weights[..., 0, :]
    if prefix == 0 or queries in {rows * columns for rows, columns in model.config.feature_map_sizes(height, width)}:
        return weights.mean(-2)
    if getattr(model.config, "pooling", "cls") != "cls":
        return weights[..., prefix:, :].mean(-2)
    heads = 2 if getattr(model.config, "distilled", False) else 1
    return weights[..., :heads, :].mean(-2)


def to_grid(model: PreTrainedModel, weights: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """
    Lays weights of tokens out on an image of H = `height`, W = `width` pixels: (..., M) to (..., rows, columns). Prefix
    tokens are left out.

    Raises:
        UserError: if the tokens are those of no feature map of the model.
    """
    tokens = weights.shape[-1]
    sizes = model.config.feature_map_sizes(height, width)
    for rows, columns in reversed(sizes):
        prefix = tokens - rows * columns
        if prefix in (0, model.base_model.num_prefix_tokens):
            return weights[..., prefix:].unflatten(-1, (rows, columns))
    shown = ", ".join(f"{rows} x {columns}" for rows, columns in dict.fromkeys(sizes))
    raise UserError(
        f"a map of {type(model).__name__} covers {tokens} tokens, its feature maps have {shown}: no method shows "
        f"attention within windows or over pooled keys on the image"
    )


def attention_maps(model: PreTrainedModel, pixel_values: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """
    Where the head's input attends to in every layer and head.

    Returns:
        Logits (B, num_labels), and for each layer (B, h, rows, columns).

    Raises:
        UserError: if the maps cannot be laid out on the image.
    """
    with torch.no_grad(), AttentionRecorder(model) as recorder:
        logits = model(pixel_values).logits
    if any(attention.shape[0] != len(pixel_values) for attention in recorder.maps):
        raise UserError(f"{type(model).__name__} attends within windows: no method shows that on the whole image")
    size = pixel_values.shape[-2:]
    return logits, [to_grid(model, read_out(model, attention, *size), *size) for attention in recorder.maps]


def attention_rollout(model: PreTrainedModel, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, num_labels), and the [`rollout`] to the head's input on the image, (B, rows, columns)."""
    with torch.no_grad(), AttentionRecorder(model) as recorder:
        logits = model(pixel_values).logits
    _check_square(recorder.maps, len(pixel_values), "rollout")
    size = pixel_values.shape[-2:]
    return logits, to_grid(model, read_out(model, rollout(recorder.maps), *size), *size)


def class_relevance(
    model: PreTrainedModel, pixel_values: torch.Tensor, classes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Which parts of an image speak for a class, by [`gradient_rollout`] of the class's logit.

    Args:
        pixel_values: (B, num_channels, H, W). classes: (B,) class indices.

    Returns:
        Logits (B, num_labels), and relevance (B, rows, columns), not negative.
    """
    with torch.enable_grad(), AttentionRecorder(model) as recorder:
        # A model whose parameters are frozen has no graph of its own.
        logits = model(pixel_values.detach().clone().requires_grad_()).logits
        _check_square(recorder.maps, len(pixel_values), "relevance")
        score = logits.gather(1, classes[:, None]).sum()
        gradients = torch.autograd.grad(score, recorder.maps)
    maps = [attention.detach() for attention in recorder.maps]
    size = pixel_values.shape[-2:]
    relevance = read_out(model, gradient_rollout(maps, gradients), *size)
    return logits.detach(), to_grid(model, relevance, *size)


def to_picture(pixel_values: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """
    What the model saw: normalised (C, H, W), grey or RGB, as an RGB image, enlarged to 224 pixels if it is smaller.
    """
    shape = (-1, 1, 1)
    pixels = pixel_values.cpu().float() * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    array = (pixels.clamp(0, 1) * 255).round().byte().expand(3, -1, -1).permute(1, 2, 0).numpy()
    factor = math.ceil(224 / min(array.shape[:2]))
    return Image.fromarray(array.repeat(factor, 0).repeat(factor, 1))


def overlay(picture: Image.Image, heat: torch.Tensor, limits: tuple[float, float] | None = None) -> Image.Image:
    """
    Colours an RGB image by a map (rows, columns), from its smallest to its largest value, or between `limits`: the
    warmer and the more opaque, the larger.
    """
    size = (picture.height, picture.width)
    heat = nn.functional.interpolate(heat[None, None].float().cpu(), size=size, mode="bicubic", align_corners=False)
    heat = heat[0, 0].numpy()
    low, high = limits or (heat.min(), heat.max())
    heat = ((heat - low) / max(high - low, 1e-12)).clip(0, 1)
    colors = matplotlib.colormaps["plasma"](heat)[..., :3]
    opacity = 0.25 + 0.45 * heat[..., None]
    blended = (1 - opacity) * np.asarray(picture, dtype=np.float64) / 255 + opacity * colors
    return Image.fromarray(np.rint(blended * 255).astype(np.uint8))


def heat_picture(heat: torch.Tensor) -> Image.Image:
    """A map (rows, columns) in colours, from its smallest to its largest value; a patch is a square."""
    heat = heat.float().cpu().numpy()
    heat = (heat - heat.min()) / max(heat.max() - heat.min(), 1e-12)
    return Image.fromarray(np.rint(matplotlib.colormaps["inferno"](heat)[..., :3] * 255).astype(np.uint8))


def contact_sheet(panels: Sequence[Sequence[tuple[str, Image.Image] | None]], path: str | Path, edge: float) -> None:
    """
    Writes pictures in rows, each with its title above, as one PNG.

    Args:
        panels: Rows of (title, picture); None leaves a gap. edge: Of a picture, in inches at 120 pixels each.
    """
    rows, columns = len(panels), max(map(len, panels))
    titled = any(panel and panel[0] for row in panels for panel in row)
    figure = Figure(figsize=(edge * columns, (edge + 0.22 * titled) * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for row, row_axes in zip(panels, axes, strict=True):
        for panel, axis in zip(row, row_axes, strict=False):
            if panel is not None:
                axis.imshow(panel[1], interpolation="nearest")
                axis.set_title(panel[0], fontsize=8, pad=3)
    save_figure(figure, path)

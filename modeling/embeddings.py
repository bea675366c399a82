"""Patches and positions: what turns pixels into tokens in three or more architectures.

Shapes: B batch, T frames, C channels, H x W pixels, h x w grid of patches, N tokens, d head width.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .caches import Resizable, size_table
from .configuration_vitf import pair
from .layers import FrozenParametersMixin
from .shapes import split_dim


def check_input(pixel_values: torch.Tensor, num_channels: int, multiple: tuple[int, int]) -> None:
    """Raises a ValueError that says what is needed when channels or size of (B, C, H, W) do not fit the model."""
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
        raise ValueError(
            f"expected pixel_values of shape (batch, {num_channels}, height, width), got {tuple(pixel_values.shape)}; "
            f"num_channels={num_channels} is set in the configuration"
        )
    height, width = pixel_values.shape[-2:]
    if height % multiple[0] or width % multiple[1] or height < multiple[0] or width < multiple[1]:
        raise ValueError(
            f"image size {height}x{width} does not fit: height must be a multiple of {multiple[0]} and width a "
            f"multiple of {multiple[1]}"
        )


def frames_of(pixel_values: torch.Tensor, num_channels: int) -> torch.Tensor:
    """Clips (B, T, num_channels, H, W) as images (B * T, num_channels, H, W). Raises a ValueError for another shape."""
    if pixel_values.ndim != 5 or pixel_values.shape[2] != num_channels or pixel_values.shape[1] == 0:
        raise ValueError(
            f"expected pixel_values of shape (batch, frames, {num_channels}, height, width), got "
            f"{tuple(pixel_values.shape)}; num_channels={num_channels} is set in the configuration"
        )
    return pixel_values.flatten(0, 1)


class PatchEmbeddings(nn.Module):
    """
    Non-overlapping patches, each projected to a token: (B, num_channels, H, W) to (B, h * w, hidden_size), row by row.
    """

    def __init__(self, num_channels: int, hidden_size: int, patch_size):
        super().__init__()
        self.patch_size = pair(patch_size)
        self.num_channels = num_channels
        self.projection = nn.Conv2d(num_channels, hidden_size, kernel_size=self.patch_size, stride=self.patch_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of `height` x `width` pixels."""
        return height // self.patch_size[0], width // self.patch_size[1]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        check_input(pixel_values, self.num_channels, self.patch_size)
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


# Keyword arguments of torch.nn.functional.interpolate by the name a configuration uses. "bilinear" with aligned corners
# is scipy.ndimage.zoom(order=1) of google-research/vision_transformer@c6de1e5 vit_jax/checkpoint.py; "bicubic" is
# facebookresearch/deit@7e160fe main.py; "bicubic_antialias" is timm 1.0.31 layers/pos_embed.py; "bilinear_half_pixel"
# is SHI-Labs/Compact-Transformers@cd11f09 src/utils/helpers.py; "nearest" is facebookresearch/TimeSformer@a5ef29a
# timesformer/models/vit.py. "linear" and "trilinear" are the zoom of google-research/scenic@4a38d47
# projects/vivit/model_utils.py for grids of one and of three dimensions. "linear_half_pixel", with
# "bilinear_half_pixel", is facebookresearch/SlowFast@287ec00 slowfast/models/video_model_builder.py.
# "bicubic_offset" is facebookresearch/dino@7c446df vision_transformer.py: a tenth of a patch is added to the new grid
# when the step from patch to patch is computed.
INTERPOLATIONS: dict[str, dict[str, Any]] = {
    "bilinear": {"mode": "bilinear", "align_corners": True},
    "bicubic": {"mode": "bicubic", "align_corners": False},
    "bicubic_antialias": {"mode": "bicubic", "align_corners": False, "antialias": True},
    "bicubic_offset": {"mode": "bicubic", "align_corners": False, "offset": 0.1},
    "bilinear_half_pixel": {"mode": "bilinear", "align_corners": False},
    "nearest": {"mode": "nearest"},
    "linear": {"mode": "linear", "align_corners": True},
    "trilinear": {"mode": "trilinear", "align_corners": True},
    "linear_half_pixel": {"mode": "linear", "align_corners": False},
}


def resize_positions(
    table: torch.Tensor, old: tuple[int, ...], new: tuple[int, ...], num_prefix_tokens: int, interpolation: str
) -> torch.Tensor:
    """
    Resizes a position table to another grid; rows of prefix tokens are kept.

    Args:
        table (`torch.Tensor` of shape `(1, num_prefix_tokens + old[0] * old[1], C)`). old, new (`(int, int)`): Rows and
        columns of the grid before and after; in time `(int,)`, in both `(int, int, int)`. interpolation (`str`): A key
        of `INTERPOLATIONS`.

    Returns:
        `torch.Tensor` of shape `(1, num_prefix_tokens + new[0] * new[1], C)`.
    """
    prefix, patches = table[:, :num_prefix_tokens], table[:, num_prefix_tokens:]
    image = split_dim(patches, 1, old).movedim(len(old) + 1, 1)
    if image.dtype in (torch.float16, torch.bfloat16):
        image = image.float()
    settings = dict(INTERPOLATIONS[interpolation])
    if "offset" in settings:
        offset = settings.pop("offset")
        settings["scale_factor"] = tuple((to + offset) / n for to, n in zip(new, old, strict=True))
    else:
        settings["size"] = new
    image = nn.functional.interpolate(image, **settings)
    return torch.cat((prefix, image.flatten(2).transpose(1, 2).to(table.dtype)), dim=1)


class PositionEmbeddings(Resizable):
    """
    A learned position for each token, resized to the grid of the input: in space, in time, or in both (`(T, h, w)`).
    """

    def __init__(self, hidden_size: int, grid: tuple[int, ...], num_prefix_tokens: int, interpolation: str):
        super().__init__()
        self.grid = grid
        self.num_prefix_tokens = num_prefix_tokens
        self.interpolation = interpolation
        self.weight = nn.Parameter(torch.zeros(1, num_prefix_tokens + math.prod(grid), hidden_size))

    def forward(self, grid: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """The table for a grid of `(h, w)` patches: (1, num_prefix_tokens + h * w, C)."""
        if grid == self.grid:
            return self.weight

        def make():
            return resize_positions(self.weight, self.grid, grid, self.num_prefix_tokens, self.interpolation)

        return self.for_size(grid, make)


class FrozenPositionEmbeddings(FrozenParametersMixin, PositionEmbeddings):
    """A table that is not learned, but that published files hold."""

    frozen_parameters = ("weight",)


class TimeEmbeddings(Resizable):
    """A learned position in time for each frame, or group of frames; another number takes the nearest one's."""

    def __init__(self, hidden_size: int, num_frames: int):
        super().__init__()
        self.num_frames = num_frames
        self.weight = nn.Parameter(torch.zeros(1, num_frames, hidden_size))

    def forward(self, num_frames: int) -> torch.Tensor:
        """The table for that many frames: (1, num_frames, C)."""
        if num_frames == self.num_frames:
            return self.weight

        def make():
            rows = nn.functional.interpolate(self.weight.transpose(1, 2), size=num_frames, mode="nearest")
            return rows.transpose(1, 2).contiguous()

        return self.for_size((num_frames,), make)


def sincos_positions(
    hidden_size: int, grid: tuple[int, int], dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> torch.Tensor:
    """
    The fixed 2-D table of MAE (arXiv 2111.06377; facebookresearch/mae@efb2a80 util/pos_embed.py).

    Returns:
        `torch.Tensor` of shape `(1, h * w, hidden_size)`, computed in float64: the first half of the channels encodes
        the column, the second half the row; in each half sines come before cosines.
    """
    frequencies = 1.0 / 10000 ** (torch.arange(hidden_size // 4, dtype=torch.float64) / (hidden_size / 4))
    rows, columns = (torch.arange(n, dtype=torch.float64)[:, None] * frequencies for n in grid)
    rows, columns = (torch.cat((angles.sin(), angles.cos()), dim=1) for angles in (rows, columns))
    table = torch.cat((columns[None].expand(grid[0], -1, -1), rows[:, None].expand(-1, grid[1], -1)), dim=-1)
    return table.flatten(0, 1)[None].to(device=device, dtype=dtype)


def simple_sincos_positions(
    hidden_size: int, grid: tuple[int, int], dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> torch.Tensor:
    """
    The fixed 2-D table of SimpleViT (arXiv 2205.01580; vit-pytorch 1.26.11 vit_pytorch/simple_vit.py): as
    [`sincos_positions`], but the frequencies end at 1 / 10000 itself, and the table is made in float32, whatever the
    model's dtype.
    """
    # The order of operations is the original's: in float32, another one gives another table.
    frequencies = 1.0 / 10000 ** (torch.arange(hidden_size // 4) / (hidden_size // 4 - 1))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    rows, columns = (side.flatten()[:, None] * frequencies for side in (rows, columns))
    table = torch.cat((columns.sin(), columns.cos(), rows.sin(), rows.cos()), dim=1)
    return table[None].to(device=device, dtype=dtype)


class SincosPositions(nn.Module):
    """
    Fixed 2-D sine-cosine positions of patch tokens, computed for the grid of the input by `table`; prefix tokens get
    none.
    """

    num_prefix_tokens = 0

    def __init__(self, hidden_size: int, table: Callable[..., torch.Tensor] = sincos_positions):
        super().__init__()
        self.hidden_size = hidden_size
        self.table = table

    def forward(self, grid: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
        """The table for a grid of `(h, w)` patches, (1, h * w, C), on the device and with the dtype of `like`."""
        return size_table(self.table, self.hidden_size, grid, like.dtype, like.device)


def axial_rotary(
    head_dim: int,
    max_frequency: float,
    grid: tuple[int, int],
    num_prefix_tokens: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Axial rotary angles (vit-pytorch 1.26.11 vit_pytorch/rvt.py; the idea is arXiv 2104.09864).

    Frequencies rise linearly from 1 to `max_frequency / 2`, positions from -1 to 1 along each axis. The first half of
    the rotated channels turns by the row, the second half by the column; neighbouring channels form the pairs. Prefix
    tokens and the channels beyond `4 * (head_dim // 4)` do not turn.

    Returns:
        Cosine and sine, each of shape `(num_prefix_tokens + h * w, head_dim)`.
    """
    # Made in float32 as the original does, whatever the model's dtype.
    scales = torch.linspace(1.0, max_frequency / 2, head_dim // 4, device=device).to(dtype) * math.pi
    rows, columns = (torch.linspace(-1.0, 1.0, n, device=device).to(dtype)[:, None] * scales for n in grid)
    angles = torch.cat((rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)), dim=-1)
    angles = angles.flatten(0, 1).repeat_interleave(2, dim=-1)
    angles = nn.functional.pad(angles, (0, head_dim - angles.shape[-1], num_prefix_tokens, 0))
    return angles.cos(), angles.sin()


class AxialRotary(nn.Module):
    """Axial rotary angles for the grid of the input (see `axial_rotary`)."""

    def __init__(self, head_dim: int, max_frequency: float, num_prefix_tokens: int):
        super().__init__()
        self.head_dim = head_dim
        self.max_frequency = max_frequency
        self.num_prefix_tokens = num_prefix_tokens

    def forward(self, grid: tuple[int, int], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine for a grid of `(h, w)` patches, on the device and with the dtype of `like`."""
        head_dim, max_frequency, prefix = self.head_dim, self.max_frequency, self.num_prefix_tokens
        if torch.jit.is_tracing():  # TorchScript's exporter loses the rank of angles whose number is not known
            grid = tuple(len(range(side)) for side in grid)
        return size_table(axial_rotary, head_dim, max_frequency, grid, prefix, like.dtype, like.device)


def apply_rotary(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Turns (B, h, N, d) by angles of shape (N, d): channel pairs (a, b) become (a cos - b sin, b cos + a sin)."""
    even, odd = states[..., ::2], states[..., 1::2]
    width = 2 * odd.shape[-1]  # an odd last channel has no partner and does not turn
    turned = torch.stack((-odd, even[..., : odd.shape[-1]]), dim=-1).flatten(-2)
    if width < states.shape[-1]:
        turned = nn.functional.pad(turned, (0, states.shape[-1] - width))
    return states * cosine + turned * sine

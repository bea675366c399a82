"""Patches and positions: what turns pixels into tokens in three or more architectures.

Shapes: B batch, T frames, C channels, H x W pixels, h x w grid of patches, N tokens, d head width.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from .configuration_vitf import pair


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
            f"image size {height}x{width} does not fit: height must be a multiple of {multiple[0]} and width a multiple "
            f"of {multiple[1]}"
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
    """Non-overlapping patches, each projected to a token: (B, num_channels, H, W) to (B, h * w, hidden_size), row by row."""

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


class SizeCache:
    """
    Remembers tensors that follow from parameters and the input size, so that a repeated size costs nothing.

    A tensor made from parameters is remembered only while autograd is off: with gradients it must stay on their graph.
    It is made anew when a parameter was written to, moved or cast, and after every pass with gradients: fused optimisers
    write without telling autograd. `.data` written between two passes without gradients goes unseen; `clear()`, which
    `train()` and `eval()` of the owning modules call, covers that.
    """

    max_sizes = 8

    def __init__(self):
        self.entries = {}

    def __reduce__(self):
        return SizeCache, ()  # copies and pickles start empty: their parameters are others

    def clear(self) -> None:
        """Forgets everything."""
        self.entries = {}

    def get(self, size: tuple, sources: tuple[torch.Tensor, ...], make: Callable[[], torch.Tensor]):
        """`make()`, a tensor or a tuple of them, or what it returned for this `size` while `sources` are unchanged."""
        if torch.compiler.is_compiling() or any(source.is_inference() for source in sources):
            return make()
        if sources and torch.is_grad_enabled():
            self.clear()
            return make()
        # Comparing memory addresses is safe because the entry keeps the memory of its sources alive.
        stamp = tuple((s.data_ptr(), s._version, s.dtype, s.device) for s in sources)
        entry = self.entries.get(size)
        if entry is None or entry[0] != stamp:
            if len(self.entries) >= self.max_sizes:
                self.clear()
            # Inference tensors could not take part in training later.
            with torch.inference_mode(False), torch.no_grad():
                entry = (stamp, make(), tuple(source.detach() for source in sources))
            self.entries[size] = entry
        return entry[1]


class Resizable(nn.Module):
    """Base of modules that keep a `SizeCache`; changing between training and evaluation empties it."""

    def __init__(self):
        super().__init__()
        self.by_size = SizeCache()

    def train(self, mode: bool = True):
        self.by_size.clear()
        return super().train(mode)


# Keyword arguments of torch.nn.functional.interpolate by the name a configuration uses. "bilinear" with aligned corners
# is scipy.ndimage.zoom(order=1) of google-research/vision_transformer@c6de1e5 vit_jax/checkpoint.py; "bicubic" is
# facebookresearch/deit@7e160fe main.py; "bilinear_half_pixel" is SHI-Labs/Compact-Transformers@cd11f09 src/utils/helpers.py;
# "nearest" is facebookresearch/TimeSformer@a5ef29a timesformer/models/vit.py. "linear" and "trilinear" are the zoom of
# google-research/scenic@4a38d47 projects/vivit/model_utils.py for grids of one and of three dimensions. "linear_half_pixel", with "bilinear_half_pixel", is
# facebookresearch/SlowFast@287ec00 slowfast/models/video_model_builder.py.
INTERPOLATIONS = {
    "bilinear": {"mode": "bilinear", "align_corners": True},
    "bicubic": {"mode": "bicubic", "align_corners": False},
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
        table (`torch.Tensor` of shape `(1, num_prefix_tokens + old[0] * old[1], C)`).
        old, new (`(int, int)`): Rows and columns of the grid before and after; in time `(int,)`, in both `(int, int, int)`.
        interpolation (`str`): A key of `INTERPOLATIONS`.

    Returns:
        `torch.Tensor` of shape `(1, num_prefix_tokens + new[0] * new[1], C)`.
    """
    prefix, patches = table[:, :num_prefix_tokens], table[:, num_prefix_tokens:]
    image = patches.unflatten(1, old).movedim(-1, 1)
    if image.dtype in (torch.float16, torch.bfloat16):
        image = image.float()
    image = nn.functional.interpolate(image, size=new, **INTERPOLATIONS[interpolation])
    return torch.cat((prefix, image.flatten(2).transpose(1, 2).to(table.dtype)), dim=1)


class PositionEmbeddings(Resizable):
    """A learned position for each token, resized to the grid of the input: in space, in time, or in both (`(T, h, w)`)."""

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

        return self.by_size.get(grid, (self.weight,), make)


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

        return self.by_size.get((num_frames,), (self.weight,), make)


def sincos_positions(hidden_size: int, grid: tuple[int, int]) -> torch.Tensor:
    """
    The fixed 2-D table of MAE (arXiv 2111.06377; facebookresearch/mae@efb2a80 util/pos_embed.py).

    Returns:
        `torch.Tensor` of shape `(1, h * w, hidden_size)`, float64: the first half of the channels encodes the column, the
        second half the row; in each half sines come before cosines.
    """
    frequencies = 1.0 / 10000 ** (torch.arange(hidden_size // 4, dtype=torch.float64) / (hidden_size / 4))
    rows, columns = (torch.arange(n, dtype=torch.float64)[:, None] * frequencies for n in grid)
    rows, columns = (torch.cat((angles.sin(), angles.cos()), dim=1) for angles in (rows, columns))
    table = torch.cat((columns[None].expand(grid[0], -1, -1), rows[:, None].expand(-1, grid[1], -1)), dim=-1)
    return table.flatten(0, 1)[None]


class SincosPositions(Resizable):
    """Fixed 2-D sine-cosine positions of patch tokens, computed for the grid of the input; prefix tokens get none."""

    num_prefix_tokens = 0

    def __init__(self, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, grid: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
        """The table for a grid of `(h, w)` patches, (1, h * w, C), on the device and with the dtype of `like`."""

        def make():
            return sincos_positions(self.hidden_size, grid).to(device=like.device, dtype=like.dtype)

        return self.by_size.get((*grid, like.device, like.dtype), (), make)


def axial_rotary(
    head_dim: int, max_frequency: float, grid: tuple[int, int], num_prefix_tokens: int, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Axial rotary angles (vit-pytorch 1.26.11 vit_pytorch/rvt.py; the idea is arXiv 2104.09864).

    Frequencies rise linearly from 1 to `max_frequency / 2`, positions from -1 to 1 along each axis. The first half of the
    rotated channels turns by the row, the second half by the column; neighbouring channels form the pairs. Prefix tokens
    and the channels beyond `4 * (head_dim // 4)` do not turn.

    Returns:
        Cosine and sine, each of shape `(num_prefix_tokens + h * w, head_dim)`, on the device and dtype of `like`.
    """
    # Made in float32 as the original does, whatever the model's dtype.
    scales = torch.linspace(1.0, max_frequency / 2, head_dim // 4, device=like.device).to(like.dtype) * math.pi
    rows, columns = (torch.linspace(-1.0, 1.0, n, device=like.device).to(like.dtype)[:, None] * scales for n in grid)
    angles = torch.cat((rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)), dim=-1)
    angles = angles.flatten(0, 1).repeat_interleave(2, dim=-1)
    angles = nn.functional.pad(angles, (0, head_dim - angles.shape[-1], num_prefix_tokens, 0))
    return angles.cos(), angles.sin()


class AxialRotary(Resizable):
    """Axial rotary angles for the grid of the input (see `axial_rotary`)."""

    def __init__(self, head_dim: int, max_frequency: float, num_prefix_tokens: int):
        super().__init__()
        self.head_dim = head_dim
        self.max_frequency = max_frequency
        self.num_prefix_tokens = num_prefix_tokens

    def forward(self, grid: tuple[int, int], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine for a grid of `(h, w)` patches, on the device and with the dtype of `like`."""

        def make():
            return axial_rotary(self.head_dim, self.max_frequency, grid, self.num_prefix_tokens, like)

        return self.by_size.get((*grid, like.device, like.dtype), (), make)


def apply_rotary(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Turns (B, h, N, d) by angles of shape (N, d): channel pairs (a, b) become (a cos - b sin, b cos + a sin)."""
    even, odd = states[..., ::2], states[..., 1::2]
    width = 2 * odd.shape[-1]  # an odd last channel has no partner and does not turn
    turned = torch.stack((-odd, even[..., : odd.shape[-1]]), dim=-1).flatten(-2)
    if width < states.shape[-1]:
        turned = nn.functional.pad(turned, (0, states.shape[-1] - width))
    return states * cosine + turned * sine

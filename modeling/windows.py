"""Windows of a feature map: cutting it into them, putting it together again, and what their attention adds to its
scores.

Shapes: B batch, C channels, h x w feature map (channels last), w0 side of a window, W windows of a map, n = w0 * w0
tokens of a window.
"""

import torch
from torch import nn

from .caches import Resizable, size_table
from .configuration_vitf import pair


def static_size(size: tuple[int, int]) -> tuple[int, int]:
    """
    Height and width as plain numbers. `torch.compile` then makes a graph for each size: it takes many minutes over the
    divisions and remainders of a nested model's windows when it keeps sizes open.
    """
    return tuple(len(range(side)) for side in size)


def padded_size(grid: tuple[int, int], window: int) -> tuple[int, int]:
    """Rows and columns of the smallest map of whole windows that holds a map of `grid`."""
    rows, columns = grid
    # Of positive numbers: TorchScript's exporter rounds negative ones towards zero.
    return (rows + window - 1) // window * window, (columns + window - 1) // window * window


def to_windows(feature_map: torch.Tensor, window: int, shift: int = 0) -> torch.Tensor:
    """
    Cuts a map into square windows, row by row. A map of another size is padded with zeros, to the right and below.

    Args:
        feature_map (`torch.Tensor` of shape `(B, h, w, C)`).
        window (`int`): w0, in tokens.
        shift (`int`): Rows and columns that move from the upper left end to the lower right one before cutting.

    Returns:
        `torch.Tensor` of shape `(B * W, n, C)`, the windows of an image together, tokens of a window row by row.
    """
    batch, *grid, channels = feature_map.shape
    height, width = padded_size(grid, window)
    if (height, width) != tuple(grid):
        feature_map = nn.functional.pad(feature_map, (0, 0, 0, width - grid[1], 0, height - grid[0]))
    if shift:
        feature_map = feature_map.roll((-shift, -shift), dims=(1, 2))
    blocks = feature_map.reshape(batch, height // window, window, width // window, window, channels)
    return blocks.transpose(2, 3).reshape(-1, window * window, channels)


def from_windows(windows: torch.Tensor, grid: tuple[int, int], window: int, shift: int = 0) -> torch.Tensor:
    """
    Puts windows together again: the inverse of [`to_windows`], without the padding.

    Args:
        windows (`torch.Tensor` of shape `(B * W, n, C)`).
        grid (`(int, int)`): h and w of the map that was cut. window, shift (`int`): As it was cut.

    Returns:
        `torch.Tensor` of shape `(B, h, w, C)`.
    """
    height, width = padded_size(grid, window)
    blocks = windows.reshape(-1, height // window, width // window, window, window, windows.shape[-1])
    feature_map = blocks.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])
    if shift:
        feature_map = feature_map.roll((shift, shift), dims=(1, 2))
    if (height, width) != tuple(grid):
        feature_map = feature_map[:, : grid[0], : grid[1]]
    return feature_map


def relative_position_index(window: int | tuple[int, int], device: torch.device | None = None) -> torch.Tensor:
    """
    Where a table of relative positions has that of each pair of tokens (arXiv 2103.14030, section 3.2).

    Args:
        window (`int` or `(int, int)`): Side, or rows and columns, of the window.

    Returns:
        `torch.LongTensor` of shape `(n, n)`: for query and key the row `dy * (2 * columns - 1) + dx` of a table of `(2
        * rows - 1) * (2 * columns - 1)` rows, with their distances dy and dx counted from `1 - rows` and `1 - columns`.
    """

    def distances(side: int) -> torch.Tensor:
        positions = torch.arange(side, device=device)
        return positions[:, None] - positions + side - 1

    rows, columns = pair(window)
    index = distances(rows)[:, None, :, None] * (2 * columns - 1) + distances(columns)[None, :, None, :]
    return index.reshape(rows * columns, rows * columns)


def shift_mask(
    grid: tuple[int, int],
    window: int,
    shift: int,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """
    What keeps tokens of a shifted map apart that are no neighbours, although the shift put them into one window.

    Args:
        grid (`(int, int)`): h and w of the map; it is padded to whole windows first, and padding counts as map.

    Returns:
        `torch.Tensor` of shape `(W, n, n)`, to be added to scores: 0 within a region and -100 across (not minus
        infinity, as microsoft/Swin-Transformer@f82860b models/swin_transformer.py has it).
    """

    def regions(side: int) -> torch.Tensor:
        positions = torch.arange(side, device=device)
        return (positions >= side - window).long() + (positions >= side - shift).long()

    rows, columns = (regions(side) for side in padded_size(grid, window))
    region = to_windows((3 * rows[:, None] + columns)[None, :, :, None], window)[..., 0]
    apart = region[:, :, None] != region[:, None, :]
    return torch.zeros(apart.shape, dtype=dtype, device=device).masked_fill(apart, -100.0)


class WindowBias(Resizable):
    """
    What attention within windows adds to its scores: a bias by relative position, and a mask where windows are shifted.

    Both together are one tensor. A subclass gives the bias.
    """

    def relative_bias(self, window: int) -> torch.Tensor:
        """The bias between the tokens of a window: (heads, n, n)."""
        raise NotImplementedError

    def forward(self, batch: int, grid: tuple[int, int], window: int, shift: int) -> torch.Tensor:
        """
        Args:
            batch (`int`): B. grid (`(int, int)`): h and w of the map. window, shift (`int`): As in [`to_windows`].

        Returns:
            `torch.Tensor` of shape `(1, heads, n, n)`, or `(B * W, heads, n, n)` where windows are shifted.
        """
        # The size of the map matters only to the mask.
        size = (tuple(grid), window, shift) if shift else (window,)

        def make() -> torch.Tensor:
            bias = self.relative_bias(window)[None]
            if not shift:
                return bias
            return bias + size_table(shift_mask, tuple(grid), window, shift, bias.dtype, bias.device)[:, None]

        bias = self.for_size(size, make)
        return bias.expand(batch, *bias.shape).flatten(0, 1) if shift else bias

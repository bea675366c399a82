"""
Shapes that tracers and exporters follow, and those that they must not: what else would be wrong in silence at another
size.
"""

from collections.abc import Sequence

import torch


def split_dim(states: torch.Tensor, dim: int, sizes: Sequence[int]) -> torch.Tensor:
    """
    A view of `states` whose dimension `dim` is split into `sizes`, of which one may be -1: `states.unflatten(dim,
    sizes)`.

    That one is exported by TorchScript with the batch size of the example as a constant (torch 2.14).
    """
    dim = dim % states.ndim
    return states.view(*states.shape[:dim], *sizes, *states.shape[dim + 1 :])


def keep_example_size(pixel_values: torch.Tensor) -> torch.Tensor:
    """
    The same pixels. While a tracer or an exporter records, their height and width, and for clips the number of frames,
    become those of the example for good.

    What a model chooses by the size (a table as it is or resized, padding, windows) is chosen once, when it is
    recorded, and ONNX files keep no condition about it: at another size they would return wrong numbers. Instead,
    `torch.export` marks the sizes as static, and a trace gets a split into one part of that size, which fails at
    another one.

    Args:
        pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)` or `(B, T, num_channels, H, W)`).
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        for dim in (1, 3, 4) if pixel_values.ndim == 5 else (2, 3):
            (pixel_values,) = pixel_values.split([len(range(pixel_values.shape[dim]))], dim)
    return pixel_values

"""The ResNet that makes the patches of hybrid ViTs (arXiv 2010.11929, section 3.1; BiT, arXiv 1912.11370).

Order of operations from google-research/vision_transformer@c6de1e5 vit_jax/models_resnet.py and models_vit.py.

Shapes: B batch, C channels, H x W pixels, h x w grid of patches. H and W are multiples of the patch, so every map that
is halved has even sides.
"""

import torch
from torch import nn

from .caches import Resizable
from .configuration_vit import resnet_stride
from .configuration_vitf import pair
from .embeddings import check_input


class StandardizedConv2d(Resizable, nn.Conv2d):
    """
    Convolution without bias, whose weights are standardised for each output channel: (w - mean) / (deviation + 1e-5),
    or with timm's epsilon (timm 1.0.31 layers/std_conv.py) by the root of the variance + 1e-8.

    Padding is TensorFlow's "SAME": with a stride of 2 an even side lacks one row less at the top than at the bottom.
    """

    def __init__(self, epsilons: str, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=False)
        self.epsilons = epsilons
        missing = max(kernel_size - stride, 0)
        self.missing = (missing // 2, missing - missing // 2) * 2

    def standardized_weight(self) -> torch.Tensor:
        """The kernel that the convolution runs with, (out_channels, in_channels, kernel_size, kernel_size)."""

        def make():
            centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            variance = centred.square().mean((1, 2, 3), keepdim=True)
            return centred / ((variance + 1e-8).sqrt() if self.epsilons == "timm" else variance.sqrt() + 1e-5)

        return self.for_size((), make)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        if any(self.missing):
            feature_map = nn.functional.pad(feature_map, self.missing)
        return nn.functional.conv2d(feature_map, self.standardized_weight(), stride=self.stride)


class GroupNorm(nn.GroupNorm):
    """32 groups of channels, with flax's epsilon or timm's."""

    def __init__(self, epsilons: str, channels: int):
        super().__init__(32, channels, eps={"jax": 1e-6, "timm": 1e-5}[epsilons])


class ResnetUnit(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut around them; ReLU after the sum. `width` is that of the 3x3."""

    def __init__(self, epsilons: str, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = StandardizedConv2d(epsilons, in_channels, width, 1)
        self.norm1 = GroupNorm(epsilons, width)
        self.conv2 = StandardizedConv2d(epsilons, width, width, 3, stride)
        self.norm2 = GroupNorm(epsilons, width)
        self.conv3 = StandardizedConv2d(epsilons, width, 4 * width, 1)
        self.norm3 = GroupNorm(epsilons, 4 * width)
        self.shortcut = self.shortcut_norm = None
        if in_channels != 4 * width or stride != 1:
            self.shortcut = StandardizedConv2d(epsilons, in_channels, 4 * width, 1, stride)
            self.shortcut_norm = GroupNorm(epsilons, 4 * width)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        residual = feature_map if self.shortcut is None else self.shortcut_norm(self.shortcut(feature_map))
        feature_map = self.norm1(self.conv1(feature_map)).relu()
        feature_map = self.norm2(self.conv2(feature_map)).relu()
        return (residual + self.norm3(self.conv3(feature_map))).relu()


class ResnetPatchEmbeddings(nn.Module):
    """
    (B, num_channels, H, W) to (B, h * w, hidden_size), row by row: a root that reduces four times, stages of
    bottlenecks, each but the first halving the map, and a projection of what makes up a patch on the last map.

    Args:
        patch_size (`int` or `(int, int)`): In pixels; a multiple of the stride of the ResNet.
        width (`int`): Channels of the root, a multiple of 32. depths (`list[int]`): Units of each stage; may be empty.
        epsilons (`str`): Whose they are, `"jax"` or `"timm"`.
    """

    def __init__(
        self, num_channels: int, hidden_size: int, patch_size, width: int, depths: list[int], epsilons: str = "jax"
    ):
        super().__init__()
        self.patch_size = pair(patch_size)
        self.num_channels = num_channels
        self.root = StandardizedConv2d(epsilons, num_channels, width, 7, stride=2)
        self.root_norm = GroupNorm(epsilons, width)
        # What is beyond the border to the right and below counts for nothing, as "SAME" has it for even sides.
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.stages = nn.ModuleList()
        channels = width
        for stage, depth in enumerate(depths):
            units = nn.Sequential()
            for unit in range(depth):
                units.append(ResnetUnit(epsilons, channels, width * 2**stage, stride=2 if stage and not unit else 1))
                channels = 4 * width * 2**stage
            self.stages.append(units)
        kernel = tuple(side // resnet_stride(depths) for side in self.patch_size)
        self.projection = nn.Conv2d(channels, hidden_size, kernel_size=kernel, stride=kernel)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of `height` x `width` pixels."""
        return height // self.patch_size[0], width // self.patch_size[1]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        check_input(pixel_values, self.num_channels, self.patch_size)
        feature_map = self.pool(self.root_norm(self.root(pixel_values)).relu())
        for stage in self.stages:
            feature_map = stage(feature_map)
        return self.projection(feature_map).flatten(2).transpose(1, 2)

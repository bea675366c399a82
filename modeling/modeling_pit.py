"""PiT (arXiv 2103.16302): a ViT in stages, with pooling of the patch tokens between them.

Order of operations from naver-ai/pit@9d97a62 pit.py (timm 0.3.4 vision_transformer.py for the blocks).

Shapes: B batch, P prefix tokens (class, distillation), N tokens (prefix, then patches row by row), C channels,
H x W pixels, h x w grid of patches.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import SelfAttention
from .configuration_pit import VitfPitConfig
from .configuration_vitf import pair
from .embeddings import PositionEmbeddings, check_input
from .layers import DropPath, Mlp, drop_path_rates, init_torch_default
from .modeling_vitf import (
    DistilledImageClassificationMixin,
    MaskedImageModelingMixin,
    PyramidBackboneMixin,
    VitfPreTrainedModel,
    encoder_forward,
    masked_embeddings,
)
from .shapes import split_dim


class PitPatchEmbeddings(nn.Module):
    """Overlapping patches without padding, each projected to a token: (B, num_channels, H, W) to (B, h * w, C)."""

    def __init__(self, config: VitfPitConfig):
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_size, self.stride = pair(config.patch_size), pair(config.stride)
        self.projection = nn.Conv2d(config.num_channels, config.stage_channels[0], self.patch_size, self.stride)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of `height` x `width` pixels."""
        sides = zip((height, width), self.patch_size, self.stride, strict=True)
        return tuple((side - patch) // stride + 1 for side, patch, stride in sides)

    def masked_patches(self, masked_cells: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """
        From the mask of cells of `stride` pixels to that of patches, (B, h * w): those that see only masked cells.
        """
        cells = height // self.stride[0], width // self.stride[1]
        visible = 1.0 - masked_cells.reshape(-1, 1, *cells).float()
        cells_of_a_patch = tuple(patch // stride for patch, stride in zip(self.patch_size, self.stride, strict=True))
        return nn.functional.max_pool2d(visible, cells_of_a_patch, stride=1).flatten(1) == 0

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        # Patches must reach the border; what is smaller than one is told its size.
        sides = zip(pixel_values.shape[-2:], self.patch_size, self.stride, strict=True)
        multiple = tuple(patch if side < patch else stride for side, patch, stride in sides)
        check_input(pixel_values, self.num_channels, multiple)
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


class PitEmbeddings(nn.Module):
    """(B, num_channels, H, W) to tokens (B, N, C): prefix tokens, then patches with positions."""

    def __init__(self, config: VitfPitConfig):
        super().__init__()
        hidden_size = config.stage_channels[0]
        self.patch_embeddings = PitPatchEmbeddings(config)
        self.prefix_tokens = nn.Parameter(torch.zeros(1, 1 + config.distilled, hidden_size))
        self.position_embeddings = PositionEmbeddings(
            hidden_size,
            self.patch_embeddings.grid(*pair(config.image_size)),
            num_prefix_tokens=0,
            interpolation="bicubic",
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None) -> torch.Tensor:
        height, width = pixel_values.shape[-2:]
        patches = self.patch_embeddings(pixel_values)
        if bool_masked_pos is not None:
            bool_masked_pos = self.patch_embeddings.masked_patches(bool_masked_pos, height, width)
        patches = masked_embeddings(patches, bool_masked_pos, mask_token)
        patches = self.dropout(patches + self.position_embeddings(self.patch_embeddings.grid(height, width), patches))
        return torch.cat((self.prefix_tokens.expand(patches.shape[0], -1, -1), patches), dim=1)


class PitPooling(nn.Module):
    """Halves the map of patches and widens all tokens: (B, P + h * w, C) to (B, P + ceil(h / 2) * ceil(w / 2), C')."""

    def __init__(self, narrow: int, wide: int):
        super().__init__()
        self.conv = nn.Conv2d(narrow, wide, kernel_size=3, stride=2, padding=1, groups=narrow)
        self.fc = nn.Linear(narrow, wide)

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        prefix, patches = tokens.split((tokens.shape[1] - grid[0] * grid[1], grid[0] * grid[1]), dim=1)
        feature_map = self.conv(split_dim(patches.transpose(1, 2), 2, grid))
        return torch.cat((self.fc(prefix), feature_map.flatten(2).transpose(1, 2)), dim=1)


class PitLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)); drop path on both branches."""

    def __init__(self, config: VitfPitConfig, hidden_size: int, num_heads: int, drop_path_rate: float):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = SelfAttention(config, hidden_size, num_heads, qkv_bias=True)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, hidden_size, round(config.mlp_ratio * hidden_size))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.drop_path(
            self.attention(self.layernorm_before(hidden_states), **kwargs)[0]
        )
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))


class PitStage(nn.Module):
    """Pooling, except in the first stage, then layers; `grid` is that of the tokens it is given."""

    def __init__(self, config: VitfPitConfig, stage: int, drop_path_rates: list[float]):
        super().__init__()
        narrow, wide = config.stage_channels[stage : stage + 2]
        self.pool = PitPooling(narrow, wide) if stage else None
        self.layers = nn.ModuleList([PitLayer(config, wide, config.num_heads[stage], rate) for rate in drop_path_rates])

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs) -> torch.Tensor:
        if self.pool is not None:
            hidden_states = self.pool(hidden_states, grid)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return hidden_states


class VitfPitPreTrainedModel(VitfPreTrainedModel):
    config: VitfPitConfig
    base_model_prefix = "pit"
    _no_split_modules = ["PitEmbeddings", "PitPooling", "PitLayer"]
    _can_record_outputs = {"hidden_states": PitStage, "attentions": SelfAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Tokens and positions truncated normal; all layers, unlike DeiT's, as PyTorch makes them."""
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init_torch_default(module)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, PositionEmbeddings):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, PitEmbeddings):
            init.trunc_normal_(module.prefix_tokens, std=std)


class VitfPitModel(VitfPitPreTrainedModel):
    """The bare encoder. `pooler_output` is the class token after the last norm."""

    def __init__(self, config: VitfPitConfig):
        super().__init__(config)
        self.embeddings = PitEmbeddings(config)
        # pit.py divides by the number of layers: the last one stays below the full rate.
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths) + 1))
        self.stages = nn.ModuleList(
            [PitStage(config, stage, [next(rates) for _ in range(depth)]) for stage, depth in enumerate(config.depths)]
        )
        self.layernorm = nn.LayerNorm(config.stage_channels[-1], eps=config.layer_norm_eps)
        self.num_prefix_tokens = 1 + config.distilled
        self.post_init()

    @encoder_forward
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        mask_token: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`):
                H and W multiples of `stride`, not below `patch_size`.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, H / stride * W / stride)`, *optional*):
                Cells to mask; a patch becomes the mask token where all its cells are masked.
            mask_token (`torch.Tensor` of shape `(1, 1, C)`, *optional*): What masked patches become.

        Returns:
            `last_hidden_state` (B, N, C), all tokens of the last stage after the norm; `pooler_output` (B, C);
            `hidden_states`: the input of the first stage and the output of each, (B, N, C) with N and C of the stage;
            `attentions`: (B, heads, N, N) a layer.
        """
        hidden_states = self.embeddings(pixel_values, bool_masked_pos, mask_token)
        grids = self.config.feature_map_sizes(*pixel_values.shape[-2:])
        for stage, grid in zip(self.stages, grids[:-1], strict=True):
            hidden_states = stage(hidden_states, grid, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class VitfPitForImageClassification(DistilledImageClassificationMixin, VitfPitPreTrainedModel):
    """PiT with a classifier on the class token and, when distilled, another on the distillation token."""

    encoder_class = VitfPitModel


class VitfPitForMaskedImageModeling(MaskedImageModelingMixin, VitfPitPreTrainedModel):
    """PiT that predicts the pixels of masked cells."""

    encoder_class = VitfPitModel


class VitfPitBackbone(PyramidBackboneMixin, VitfPitPreTrainedModel):
    """PiT as a backbone: the map of each stage, that of the last one after the norm."""

    encoder_class = VitfPitModel


__all__ = [
    "VitfPitBackbone",
    "VitfPitForImageClassification",
    "VitfPitForMaskedImageModeling",
    "VitfPitModel",
    "VitfPitPreTrainedModel",
]

"""DeiT (arXiv 2012.12877): ViT with a distillation token next to the class token, and a head for each.

Order of operations from facebookresearch/deit@7e160fe models.py (timm 0.3.2 vision_transformer.py for the blocks).

Shapes: B batch, N tokens (class, distillation, then patches row by row), C channels, H x W pixels, h heads.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import SelfAttention
from .configuration_deit import VitfDeitConfig
from .configuration_vitf import pair
from .embeddings import PatchEmbeddings, PositionEmbeddings
from .layers import DropPath, Mlp, drop_path_rates, init_trunc_normal
from .modeling_vitf import (
    DistilledImageClassificationMixin,
    MaskedImageModelingMixin,
    VitfBackboneMixin,
    VitfPreTrainedModel,
    encoder_forward,
    masked_embeddings,
)


class DeitEmbeddings(nn.Module):
    """(B, num_channels, H, W) to tokens (B, N, C): class token, distillation token, patches; positions added to all."""

    def __init__(self, config: VitfDeitConfig):
        super().__init__()
        hidden_size = config.hidden_size
        self.patch_embeddings = PatchEmbeddings(config.num_channels, hidden_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, hidden_size)) if config.distilled else None
        self.position_embeddings = PositionEmbeddings(
            hidden_size,
            self.patch_embeddings.grid(*pair(config.image_size)),
            num_prefix_tokens=1 + config.distilled,
            interpolation="bicubic",
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None) -> torch.Tensor:
        patches = self.patch_embeddings(pixel_values)
        patches = masked_embeddings(patches, bool_masked_pos, mask_token)
        grid = self.patch_embeddings.grid(*pixel_values.shape[-2:])
        prefix = [token for token in (self.cls_token, self.distillation_token) if token is not None]
        tokens = torch.cat([token.expand(patches.shape[0], -1, -1) for token in prefix] + [patches], dim=1)
        return self.dropout(tokens + self.position_embeddings(grid, patches))


class DeitLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)); drop path on both branches."""

    def __init__(self, config: VitfDeitConfig, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_size
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = SelfAttention(config, hidden_size, config.num_attention_heads, config.qkv_bias)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, hidden_size, round(config.mlp_ratio * hidden_size))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        # Nested, not named step by step: what a name holds stays in memory until the layer ends.
        hidden_states = hidden_states + self.drop_path(
            self.attention(self.layernorm_before(hidden_states), **kwargs)[0]
        )
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))


class VitfDeitPreTrainedModel(VitfPreTrainedModel):
    config: VitfDeitConfig
    base_model_prefix = "deit"
    _no_split_modules = ["DeitEmbeddings", "DeitLayer"]
    _can_record_outputs = {"hidden_states": DeitLayer, "attentions": SelfAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        init_trunc_normal(module, std)
        if isinstance(module, PositionEmbeddings):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, DeitEmbeddings):
            init.trunc_normal_(module.cls_token, std=std)
            if module.distillation_token is not None:
                init.trunc_normal_(module.distillation_token, std=std)


class VitfDeitModel(VitfDeitPreTrainedModel):
    """The bare encoder. `pooler_output` is the class token after the last norm."""

    def __init__(self, config: VitfDeitConfig):
        super().__init__(config)
        self.embeddings = DeitEmbeddings(config)
        rates = drop_path_rates(config.drop_path_rate, config.num_hidden_layers)
        self.layers = nn.ModuleList([DeitLayer(config, rate) for rate in rates])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
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
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`): H and W multiples of the patch size.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, number of patches)`, *optional*): Patches to mask.
            mask_token (`torch.Tensor` of shape `(1, 1, C)`, *optional*): What masked patches become.

        Returns:
            `last_hidden_state` (B, N, C), after the last norm; `pooler_output` (B, C);
            `hidden_states`: the input of the first layer and the output of each; `attentions`: (B, h, N, N) a layer.
        """
        hidden_states = self.embeddings(pixel_values, bool_masked_pos, mask_token)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class VitfDeitForImageClassification(DistilledImageClassificationMixin, VitfDeitPreTrainedModel):
    """DeiT with a classifier on the class token and, when distilled, another on the distillation token."""

    encoder_class = VitfDeitModel


class VitfDeitForMaskedImageModeling(MaskedImageModelingMixin, VitfDeitPreTrainedModel):
    """DeiT that predicts the pixels of masked patches."""

    encoder_class = VitfDeitModel


class VitfDeitBackbone(VitfBackboneMixin, VitfDeitPreTrainedModel):
    """DeiT as a backbone: the tokens of chosen layers as feature maps, all at the stride of the patch."""

    encoder_class = VitfDeitModel


__all__ = [
    "VitfDeitBackbone",
    "VitfDeitForImageClassification",
    "VitfDeitForMaskedImageModeling",
    "VitfDeitModel",
    "VitfDeitPreTrainedModel",
]

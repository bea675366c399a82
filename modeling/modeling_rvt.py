"""RvT: ViT with axial rotary positions, convolutional queries and a gated feed-forward layer.

Order of operations from vit-pytorch 1.26.11 vit_pytorch/rvt.py.

Shapes: B batch, N tokens (class token, then patches row by row), C channels, H x W pixels, h heads, d head width.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import attend
from .configuration_rvt import VitfRvtConfig
from .configuration_vitf import pair
from .embeddings import AxialRotary, PatchEmbeddings, apply_rotary
from .layers import DropPath, Mlp, drop_path_rates, init_torch_default
from .modeling_vitf import (
    ImageClassificationMixin,
    MaskedImageModelingMixin,
    VitfBackboneMixin,
    VitfPreTrainedModel,
    encoder_forward,
    masked_embeddings,
)
from .shapes import split_dim


class RvtEmbeddings(nn.Module):
    """(B, num_channels, H, W) to tokens (B, N, C): class token, patches; no positions."""

    def __init__(self, config: VitfRvtConfig):
        super().__init__()
        self.patch_embeddings = PatchEmbeddings(config.num_channels, config.hidden_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None) -> torch.Tensor:
        patches = self.patch_embeddings(pixel_values)
        patches = masked_embeddings(patches, bool_masked_pos, mask_token)
        return self.dropout(torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1))


class RvtConvQuery(nn.Module):
    """
    Queries (B, N, h * d): patches through a depth-wise 5x5 and a 1x1 convolution, the class token through a layer.
    """

    def __init__(self, hidden_size: int, inner_size: int):
        super().__init__()
        self.depthwise = nn.Conv2d(hidden_size, hidden_size, 5, padding=2, groups=hidden_size, bias=False)
        self.pointwise = nn.Conv2d(hidden_size, inner_size, 1, bias=False)
        self.cls_projection = nn.Linear(hidden_size, inner_size) if hidden_size != inner_size else nn.Identity()

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        patches = split_dim(hidden_states[:, 1:].transpose(1, 2), 2, grid)
        patches = self.pointwise(self.depthwise(patches)).flatten(2).transpose(1, 2)
        return torch.cat((self.cls_projection(hidden_states[:, :1]), patches), dim=1)


class RvtLinearQuery(nn.Linear):
    """Queries (B, N, h * d) by one layer without bias."""

    def __init__(self, hidden_size: int, inner_size: int):
        super().__init__(hidden_size, inner_size, bias=False)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return super().forward(hidden_states)


class RvtAttention(nn.Module):
    """Self-attention with its own width `h * d`, queries by `query_projection`, keys and values without bias."""

    is_causal = False

    def __init__(self, config: VitfRvtConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.scaling = config.head_dim**-0.5
        inner_size = config.num_attention_heads * config.head_dim
        query_class = {"conv": RvtConvQuery, "linear": RvtLinearQuery}[config.query_projection]
        self.query = query_class(config.hidden_size, inner_size)
        self.key_value = nn.Linear(config.hidden_size, 2 * inner_size, bias=False)
        self.proj = nn.Linear(inner_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states, grid, rotary=None, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        query = split_dim(self.query(hidden_states, grid), 2, (self.num_heads, -1)).transpose(1, 2)
        key, value = split_dim(self.key_value(hidden_states), 2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if rotary is not None:
            query, key = apply_rotary(query, *rotary), apply_rotary(key, *rotary)
        context, probabilities = attend(self, query, key, value, self.scaling, **kwargs)
        return self.dropout(self.proj(context)), probabilities


class RvtGatedMlp(nn.Module):
    """`fc1` to twice the width, the second half through the activation gates the first, `fc2`."""

    def __init__(self, config: VitfRvtConfig, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, 2 * intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        values, gates = self.fc1(hidden_states).chunk(2, dim=-1)
        return self.dropout(self.fc2(self.dropout(values * self.activation(gates))))


class RvtLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)); drop path on both branches."""

    def __init__(self, config: VitfRvtConfig, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_size
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = RvtAttention(config)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        mlp_class = {"gated": RvtGatedMlp, "plain": Mlp}[config.mlp_type]
        self.mlp = mlp_class(config, hidden_size, round(config.mlp_ratio * hidden_size))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.drop_path(
            self.attention(self.layernorm_before(hidden_states), **kwargs)[0]
        )
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))


class VitfRvtPreTrainedModel(VitfPreTrainedModel):
    config: VitfRvtConfig
    base_model_prefix = "rvt"
    _no_split_modules = ["RvtEmbeddings", "RvtLayer"]
    _can_record_outputs = {"hidden_states": RvtLayer, "attentions": RvtAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The original leaves PyTorch's defaults, and a standard normal class token.
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init_torch_default(module)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, RvtEmbeddings):
            init.normal_(module.cls_token)


class VitfRvtModel(VitfRvtPreTrainedModel):
    """The bare encoder. `pooler_output` is the class token through the last norm."""

    num_prefix_tokens = 1

    def __init__(self, config: VitfRvtConfig):
        super().__init__(config)
        self.embeddings = RvtEmbeddings(config)
        rates = drop_path_rates(config.drop_path_rate, config.num_hidden_layers)
        self.layers = nn.ModuleList([RvtLayer(config, rate) for rate in rates])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.rotary = None
        if config.position_embedding_type == "rotary":
            # Frequencies follow the configured size in pixels, whatever the size of an input (rvt.py).
            self.rotary = AxialRotary(config.head_dim, max(pair(config.image_size)), self.num_prefix_tokens)
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
        grid = self.embeddings.patch_embeddings.grid(*pixel_values.shape[-2:])
        if self.rotary is not None:
            kwargs["rotary"] = self.rotary(grid, hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states, grid=grid, **kwargs)
        # The original normalises only the class token, the one input of its head; masked image modeling reads the
        # patches.
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class VitfRvtForImageClassification(ImageClassificationMixin, VitfRvtPreTrainedModel):
    """RvT with a linear classifier on the class token."""

    encoder_class = VitfRvtModel


class VitfRvtForMaskedImageModeling(MaskedImageModelingMixin, VitfRvtPreTrainedModel):
    """RvT that predicts the pixels of masked patches."""

    encoder_class = VitfRvtModel


class VitfRvtBackbone(VitfBackboneMixin, VitfRvtPreTrainedModel):
    """RvT as a backbone: the tokens of chosen layers as feature maps, all at the stride of the patch."""

    encoder_class = VitfRvtModel


__all__ = [
    "VitfRvtBackbone",
    "VitfRvtForImageClassification",
    "VitfRvtForMaskedImageModeling",
    "VitfRvtModel",
    "VitfRvtPreTrainedModel",
]

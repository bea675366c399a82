"""CaiT (arXiv 2103.17239): layer scale, talking heads, and a class token that only the last layers see.

Order of operations from facebookresearch/deit@7e160fe cait_models.py.

Shapes: B batch, N patch tokens row by row, C channels, H x W pixels, h heads, d head width.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import HeadMixing, attend, probabilities_of
from .configuration_cait import VitfCaitConfig
from .configuration_vitf import pair
from .embeddings import PatchEmbeddings, PositionEmbeddings
from .layers import DropPath, LayerScale, Mlp, drop_path_rates, init_trunc_normal
from .modeling_vitf import (
    ImageClassificationMixin,
    LayerGroup,
    MaskedImageModelingMixin,
    VitfBackboneMixin,
    VitfPreTrainedModel,
    encoder_forward,
    masked_embeddings,
)


class CaitEmbeddings(nn.Module):
    """(B, num_channels, H, W) to patch tokens (B, N, C), positions added; no class token yet."""

    def __init__(self, config: VitfCaitConfig):
        super().__init__()
        self.patch_embeddings = PatchEmbeddings(config.num_channels, config.hidden_size, config.patch_size)
        self.position_embeddings = PositionEmbeddings(
            config.hidden_size,
            self.patch_embeddings.grid(*pair(config.image_size)),
            num_prefix_tokens=0,
            interpolation="bicubic",
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None) -> torch.Tensor:
        patches = self.patch_embeddings(pixel_values)
        patches = masked_embeddings(patches, bool_masked_pos, mask_token)
        grid = self.patch_embeddings.grid(*pixel_values.shape[-2:])
        return self.dropout(patches + self.position_embeddings(grid, patches))


class CaitAttention(nn.Module):
    """The part that both kinds of attention have in common."""

    is_causal = False

    def __init__(self, config: VitfCaitConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)


class CaitTalkingHeadsAttention(CaitAttention):
    """
    Self-attention whose heads exchange their scores before the softmax and their probabilities after it.

    No fused kernel mixes heads: the maps are computed whatever attention implementation is configured.
    """

    def __init__(self, config: VitfCaitConfig):
        super().__init__(config)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.mix_scores = HeadMixing(config.num_attention_heads)
        self.mix_probabilities = HeadMixing(config.num_attention_heads)
        self.attention_dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, N, C) to (B, N, C) and the mixed map (B, h, N, N), whose rows need not sum to 1."""
        batch, tokens, _ = hidden_states.shape
        query, key, value = (
            self.qkv(hidden_states).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
        scores = torch.matmul(query * self.scaling, key.transpose(-1, -2))
        attention = self.mix_probabilities(probabilities_of(self.mix_scores(scores)))
        attention = self.attention_dropout(attention)
        context = torch.matmul(attention, value).transpose(1, 2).flatten(2)
        return self.dropout(self.proj(context)), attention


class CaitClassAttention(CaitAttention):
    """Attention of the class token to itself and to the patches; rows of `key_value` are [keys; values]."""

    def __init__(self, config: VitfCaitConfig):
        super().__init__(config)
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.key_value = nn.Linear(config.hidden_size, 2 * config.hidden_size, bias=config.qkv_bias)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, 1 + N, C), the class token first, to the class token (B, 1, C) and the map (B, h, 1, 1 + N)."""
        batch, tokens, _ = hidden_states.shape
        query = self.query(hidden_states[:, :1]).view(batch, 1, self.num_heads, -1).transpose(1, 2)
        key, value = self.key_value(hidden_states).view(batch, tokens, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        context, probabilities = attend(self, query, key, value, self.scaling, **kwargs)
        return self.dropout(self.proj(context)), probabilities


class CaitLayer(GradientCheckpointingLayer):
    """Of the patches: x + scale * attention(norm(x)), then x + scale * mlp(norm(x)); drop path on both branches."""

    def __init__(self, config: VitfCaitConfig, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_size
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = CaitTalkingHeadsAttention(config)
        self.layer_scale1 = LayerScale(hidden_size, config.layer_scale_init_value)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, hidden_size, round(config.mlp_ratio * hidden_size))
        self.layer_scale2 = LayerScale(hidden_size, config.layer_scale_init_value)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.drop_path(
            self.layer_scale1(self.attention(self.layernorm_before(hidden_states), **kwargs)[0])
        )
        mlp_output = self.mlp(self.layernorm_after(hidden_states))
        return hidden_states + self.drop_path(self.layer_scale2(mlp_output))


class CaitClassLayer(GradientCheckpointingLayer):
    """
    Of the class token c: c + scale * attention(norm([c, x])), then c + scale * mlp(norm(c)). The patches x are read and
    stay as they are; the first norm sees them too.
    """

    def __init__(self, config: VitfCaitConfig):
        super().__init__()
        hidden_size = config.hidden_size
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = CaitClassAttention(config)
        self.layer_scale1 = LayerScale(hidden_size, config.layer_scale_init_value)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, hidden_size, round(config.class_attention_mlp_ratio * hidden_size))
        self.layer_scale2 = LayerScale(hidden_size, config.layer_scale_init_value)

    def forward(self, cls_token: torch.Tensor, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        """(B, 1, C) and (B, N, C) to (B, 1, C)."""
        tokens = self.layernorm_before(torch.cat((cls_token, hidden_states), dim=1))
        cls_token = cls_token + self.layer_scale1(self.attention(tokens, **kwargs)[0])
        return cls_token + self.layer_scale2(self.mlp(self.layernorm_after(cls_token)))


class CaitClassStage(nn.Module):
    """The class token and its layers: patches (B, N, C) to the class token (B, 1, C)."""

    def __init__(self, config: VitfCaitConfig):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.layers = nn.ModuleList([CaitClassLayer(config) for _ in range(config.num_class_attention_layers)])

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        cls_token = self.cls_token.expand(hidden_states.shape[0], -1, -1)
        for layer in self.layers:
            cls_token = layer(cls_token, hidden_states, **kwargs)
        return cls_token


class VitfCaitPreTrainedModel(VitfPreTrainedModel):
    config: VitfCaitConfig
    base_model_prefix = "cait"
    _no_split_modules = ["CaitEmbeddings", "CaitLayer", "CaitClassStage"]
    _can_record_outputs = {"hidden_states": CaitLayer, "attentions": CaitAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        init_trunc_normal(module, std)
        if isinstance(module, PositionEmbeddings):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, HeadMixing):  # linear layers to the original
            init.trunc_normal_(module.weight, std=std)
            init.zeros_(module.bias)
        elif isinstance(module, CaitClassStage):
            init.trunc_normal_(module.cls_token, std=std)


class VitfCaitModel(VitfCaitPreTrainedModel):
    """
    The bare encoder. `pooler_output` is the class token after the last norm.

    Args:
        add_pooling_layer (`bool`, *optional*, defaults to `True`): Whether to make the class token and its layers. They
            change no patch: heads that do not read `pooler_output` would train them in vain.
    """

    def __init__(self, config: VitfCaitConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = CaitEmbeddings(config)
        rates = drop_path_rates(config.drop_path_rate, config.num_hidden_layers, "constant")
        self.layers = nn.ModuleList([CaitLayer(config, rate) for rate in rates])
        self.class_stage = CaitClassStage(config) if add_pooling_layer else None
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.num_prefix_tokens = int(add_pooling_layer)
        self.post_init()

    def layer_groups(self) -> list[LayerGroup]:
        groups = super().layer_groups()
        if self.class_stage is not None:
            # The class token is read by its own layers only, and counts among the stem all the same, as in timm.
            groups[0].append(self.class_stage.cls_token)
            groups += ([layer] for layer in self.class_stage.layers)
        return groups

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
            `last_hidden_state` (B, 1 + N, C), the class token first, after the last norm, (B, N, C) without the layers
            of the class token; `pooler_output` (B, C), or `None` without them; `hidden_states`: patches (B, N, C), the
            input of the first layer and the output of each; `attentions`: (B, h, N, N) a layer, whose rows need not sum
            to 1, then (B, h, 1, 1 + N) a layer of the class token.
        """
        hidden_states = self.embeddings(pixel_values, bool_masked_pos, mask_token)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        if self.class_stage is None:
            return BaseModelOutputWithPooling(last_hidden_state=self.layernorm(hidden_states))
        cls_token = self.class_stage(hidden_states, **kwargs)
        hidden_states = self.layernorm(torch.cat((cls_token, hidden_states), dim=1))
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class VitfCaitForImageClassification(ImageClassificationMixin, VitfCaitPreTrainedModel):
    """CaiT with a linear classifier on the class token."""

    encoder_class = VitfCaitModel


class VitfCaitForMaskedImageModeling(MaskedImageModelingMixin, VitfCaitPreTrainedModel):
    """CaiT that predicts the pixels of masked patches."""

    encoder_class = VitfCaitModel
    encoder_kwargs = {"add_pooling_layer": False}


class VitfCaitBackbone(VitfBackboneMixin, VitfCaitPreTrainedModel):
    """CaiT as a backbone: the patches of chosen layers as feature maps, all at the stride of the patch."""

    encoder_class = VitfCaitModel
    encoder_kwargs = {"add_pooling_layer": False}


__all__ = [
    "VitfCaitBackbone",
    "VitfCaitForImageClassification",
    "VitfCaitForMaskedImageModeling",
    "VitfCaitModel",
    "VitfCaitPreTrainedModel",
]

"""ViT (arXiv 2010.11929): patches as tokens, and a pre-norm transformer encoder.

Order of operations from google-research/vision_transformer@c6de1e5 vit_jax/models_vit.py; layer scale and positions without
a class row from facebookresearch/deit@7e160fe models_v2.py; axial rotary positions from vit-pytorch 1.26.11 rvt.py.

Shapes: B batch, N tokens (class, registers, then patches row by row), C channels, H x W pixels, h heads.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import SelfAttention
from .configuration_vit import VitfVitConfig
from .configuration_vitf import pair
from .embeddings import AxialRotary, PatchEmbeddings, PositionEmbeddings, SincosPositions
from .layers import DropPath, LayerScale, Mlp, drop_path_rates, init_jax, init_lecun_normal, init_trunc_normal
from .modeling_vitf import (
    ImageClassificationMixin,
    MaskedImageModelingMixin,
    VitfBackboneMixin,
    VitfPreTrainedModel,
    masked_embeddings,
)
from .resnet_stem import ResnetPatchEmbeddings, ResnetUnit


class VitEmbeddings(nn.Module):
    """(B, num_channels, H, W) to tokens (B, N, C): class token, register tokens, patches; positions added."""

    def __init__(self, config: VitfVitConfig):
        super().__init__()
        hidden_size = config.hidden_size
        if config.resnet_depths is None:
            self.patch_embeddings = PatchEmbeddings(config.num_channels, hidden_size, config.patch_size)
        else:
            self.patch_embeddings = ResnetPatchEmbeddings(
                config.num_channels, hidden_size, config.patch_size, config.resnet_width, config.resnet_depths
            )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size)) if config.use_cls_token else None
        self.register_tokens = None
        if config.num_register_tokens:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, hidden_size))
        self.position_embeddings = None
        if config.position_embedding_type == "learned":
            self.position_embeddings = PositionEmbeddings(
                hidden_size,
                self.patch_embeddings.grid(*pair(config.image_size)),
                num_prefix_tokens=int(config.use_cls_token and config.prefix_position_embeddings),
                interpolation=config.position_interpolation,
            )
        elif config.position_embedding_type == "sincos":
            self.position_embeddings = SincosPositions(hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None) -> torch.Tensor:
        patches = self.patch_embeddings(pixel_values)
        patches = masked_embeddings(patches, bool_masked_pos, mask_token)
        grid = self.patch_embeddings.grid(*pixel_values.shape[-2:])
        cls_token = self.cls_token
        if self.position_embeddings is not None:
            positions = self.position_embeddings(grid, patches)
            if self.position_embeddings.num_prefix_tokens:
                cls_token, positions = cls_token + positions[:, :1], positions[:, 1:]
            patches = patches + positions
        prefix = [token for token in (cls_token, self.register_tokens) if token is not None]
        tokens = torch.cat([token.expand(patches.shape[0], -1, -1) for token in prefix] + [patches], dim=1)
        return self.dropout(tokens)


class VitLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)); each branch with optional layer scale, and drop path."""

    def __init__(self, config: VitfVitConfig, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_size
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = SelfAttention(config, hidden_size, config.num_attention_heads, config.qkv_bias)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, hidden_size, round(config.mlp_ratio * hidden_size))
        self.layer_scale1 = self.layer_scale2 = nn.Identity()
        if config.layer_scale_init_value is not None:
            self.layer_scale1 = LayerScale(hidden_size, config.layer_scale_init_value)
            self.layer_scale2 = LayerScale(hidden_size, config.layer_scale_init_value)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        # Nested, not named step by step: what a name holds stays in memory until the layer ends.
        hidden_states = hidden_states + self.drop_path(
            self.layer_scale1(self.attention(self.layernorm_before(hidden_states), **kwargs)[0])
        )
        return hidden_states + self.drop_path(self.layer_scale2(self.mlp(self.layernorm_after(hidden_states))))


class VitfVitPreTrainedModel(VitfPreTrainedModel):
    config: VitfVitConfig
    base_model_prefix = "vit"
    _no_split_modules = ["VitEmbeddings", "VitLayer"]
    _can_record_outputs = {"hidden_states": VitLayer, "attentions": SelfAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, PositionEmbeddings):
            init.normal_(module.weight, std=std)
        elif isinstance(module, VitEmbeddings) and module.register_tokens is not None:
            init.normal_(module.register_tokens, std=std)
        if self.config.initialization == "trunc_normal":
            init_trunc_normal(module, std)
            if isinstance(module, VitEmbeddings) and module.cls_token is not None:
                init.trunc_normal_(module.cls_token, std=std)
        else:
            self._init_jax(module)

    def _init_jax(self, module: nn.Module) -> None:
        """That of models_vit.py, with a zero class token."""
        init_jax(module)
        if isinstance(module, ResnetUnit):
            init.zeros_(module.norm3.weight)
        elif isinstance(module, VitfVitModel) and module.pre_logits is not None:
            init_lecun_normal(module.pre_logits.weight)
        elif isinstance(module, LayerScale):
            init.constant_(module.weight, module.init_value)
        elif isinstance(module, VitEmbeddings) and module.cls_token is not None:
            init.zeros_(module.cls_token)


class VitfVitModel(VitfVitPreTrainedModel):
    """
    The bare encoder. `pooler_output` is the class token or the mean, through `pre_logits` where there is one.

    Args:
        add_pooling_layer (`bool`, *optional*, defaults to `True`):
            Whether to make `pre_logits`; heads that do not read `pooler_output` would train it in vain.
    """

    def __init__(self, config: VitfVitConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = VitEmbeddings(config)
        rates = drop_path_rates(config.drop_path_rate, config.num_hidden_layers, config.drop_path_schedule)
        self.layers = nn.ModuleList([VitLayer(config, rate) for rate in rates])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pre_logits = None
        if add_pooling_layer and config.representation_size is not None:
            self.pre_logits = nn.Linear(config.hidden_size, config.representation_size)
        self.num_prefix_tokens = int(config.use_cls_token) + config.num_register_tokens
        self.rotary = None
        if config.position_embedding_type == "rotary":
            head_dim = config.hidden_size // config.num_attention_heads
            self.rotary = AxialRotary(head_dim, max(pair(config.image_size)), self.num_prefix_tokens)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
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
            `last_hidden_state` (B, N, C), after the last norm; `pooler_output` (B, C or `representation_size`);
            `hidden_states`: the input of the first layer and the output of each; `attentions`: (B, h, N, N) a layer.
        """
        hidden_states = self.embeddings(pixel_values, bool_masked_pos, mask_token)
        if self.rotary is not None:
            grid = self.embeddings.patch_embeddings.grid(*pixel_values.shape[-2:])
            kwargs["rotary"] = self.rotary(grid, like=hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        if self.config.pooling == "cls":
            pooled = hidden_states[:, 0]
        else:
            pooled = hidden_states[:, self.num_prefix_tokens :].mean(dim=1)
        if self.pre_logits is not None:
            pooled = torch.tanh(self.pre_logits(pooled))
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)


class VitfVitForImageClassification(ImageClassificationMixin, VitfVitPreTrainedModel):
    """ViT with a linear classifier on the pooled output."""

    encoder_class = VitfVitModel


class VitfVitForMaskedImageModeling(MaskedImageModelingMixin, VitfVitPreTrainedModel):
    """ViT that predicts the pixels of masked patches."""

    encoder_class = VitfVitModel
    encoder_kwargs = {"add_pooling_layer": False}


class VitfVitBackbone(VitfBackboneMixin, VitfVitPreTrainedModel):
    """ViT as a backbone: the tokens of chosen layers as feature maps, all at the stride of the patch."""

    encoder_class = VitfVitModel
    encoder_kwargs = {"add_pooling_layer": False}


__all__ = [
    "VitfVitBackbone",
    "VitfVitForImageClassification",
    "VitfVitForMaskedImageModeling",
    "VitfVitModel",
    "VitfVitPreTrainedModel",
]

"""DeepViT (arXiv 2103.11886): re-attention mixes the heads' maps after the softmax, so that deep layers stay different.

Order of operations from zhoudaquan/dvit_repo@1ccb152 models/deep_vision_transformer.py and models/layers.py.

Shapes: B batch, N tokens (class, then patches row by row), C channels, H x W pixels, h heads, d head width.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import HeadMixing, SelfAttention, probabilities_of
from .configuration_deepvit import VitfDeepvitConfig
from .configuration_vitf import pair
from .embeddings import PatchEmbeddings, PositionEmbeddings, check_input
from .layers import (
    BatchNorm2d,
    DropPath,
    Mlp,
    drop_path_rates,
    init_torch_default,
    init_trunc_normal,
)
from .modeling_vitf import (
    ImageClassificationMixin,
    MaskedImageModelingMixin,
    VitfBackboneMixin,
    VitfPreTrainedModel,
    encoder_forward,
    masked_embeddings,
)


class DeepvitConvPatchEmbeddings(nn.Module):
    """(B, num_channels, H, W) to (B, N, C): two convolutions with batch norm at half the resolution, then patches."""

    stem_channels = 64

    def __init__(self, num_channels: int, hidden_size: int, patch_size):
        super().__init__()
        self.num_channels = num_channels
        self.patch_size = pair(patch_size)
        self.conv1 = nn.Conv2d(num_channels, self.stem_channels, 7, stride=2, padding=3, bias=False)
        self.norm1 = BatchNorm2d(self.stem_channels)
        self.conv2 = nn.Conv2d(self.stem_channels, self.stem_channels, 3, padding=1, bias=False)
        self.norm2 = BatchNorm2d(self.stem_channels)
        half = tuple(size // 2 for size in self.patch_size)
        self.projection = nn.Conv2d(self.stem_channels, hidden_size, kernel_size=half, stride=half)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of `height` x `width` pixels."""
        return height // self.patch_size[0], width // self.patch_size[1]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        check_input(pixel_values, self.num_channels, self.patch_size)
        hidden_states = self.norm1(self.conv1(pixel_values)).relu()
        hidden_states = self.norm2(self.conv2(hidden_states)).relu()
        return self.projection(hidden_states).flatten(2).transpose(1, 2)


PATCH_EMBEDDINGS = {"linear": PatchEmbeddings, "convolutional": DeepvitConvPatchEmbeddings}


class DeepvitEmbeddings(nn.Module):
    """(B, num_channels, H, W) to tokens (B, N, C): class token, patches; positions added to all."""

    def __init__(self, config: VitfDeepvitConfig):
        super().__init__()
        hidden_size = config.hidden_size
        patch_embeddings_class = PATCH_EMBEDDINGS[config.patch_embedding_type]
        self.patch_embeddings = patch_embeddings_class(config.num_channels, hidden_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.position_embeddings = PositionEmbeddings(
            hidden_size,
            self.patch_embeddings.grid(*pair(config.image_size)),
            num_prefix_tokens=1,
            interpolation="bicubic",
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None) -> torch.Tensor:
        patches = self.patch_embeddings(pixel_values)
        patches = masked_embeddings(patches, bool_masked_pos, mask_token)
        grid = self.patch_embeddings.grid(*pixel_values.shape[-2:])
        tokens = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        return self.dropout(tokens + self.position_embeddings(grid, patches))


class DeepvitReAttention(SelfAttention):
    """
    Self-attention whose maps are mixed over the heads after the softmax, then normalised for each head over the batch.

    No fused kernel mixes heads: the maps are computed whatever attention implementation is configured.
    """

    def __init__(self, config: VitfDeepvitConfig):
        super().__init__(config, config.hidden_size, config.num_attention_heads, config.qkv_bias)
        self.attention_dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.mixing = HeadMixing(config.num_attention_heads)
        self.batch_norm = BatchNorm2d(config.num_attention_heads)
        self.transform_scale = self.scaling if config.transform_scale else None

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, N, C) to (B, N, C) and the mixed map (B, h, N, N), whose rows need not sum to 1."""
        batch, tokens, _ = hidden_states.shape
        query, key, value = (
            self.qkv(hidden_states).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
        probabilities = probabilities_of(torch.matmul(query * self.scaling, key.transpose(-1, -2)))
        attention = self.batch_norm(self.mixing(self.attention_dropout(probabilities)))
        if self.transform_scale is not None:
            attention = attention * self.transform_scale
        context = torch.matmul(attention, value).transpose(1, 2).flatten(2)
        return self.dropout(self.proj(context)), attention


class DeepvitLayer(GradientCheckpointingLayer):
    """x + attention(norm(s x)) / s, then x + mlp(norm(s x)) / s, s the scale adjustment; drop path on both branches."""

    def __init__(self, config: VitfDeepvitConfig, drop_path_rate: float, re_attention: bool):
        super().__init__()
        hidden_size = config.hidden_size
        # norm(s x) is the norm of x with an epsilon of eps / s**2.
        eps = config.layer_norm_eps / config.scale_adjustment**2
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=eps)
        if re_attention:
            self.attention = DeepvitReAttention(config)
        else:
            self.attention = SelfAttention(config, hidden_size, config.num_attention_heads, config.qkv_bias)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=eps)
        self.mlp = Mlp(config, hidden_size, round(config.mlp_ratio * hidden_size))
        self.drop_path = DropPath(drop_path_rate)
        self.branch_factor = 1 / config.scale_adjustment

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = hidden_states.add(
            self.drop_path(self.attention(self.layernorm_before(hidden_states), **kwargs)[0]), alpha=self.branch_factor
        )
        mlp_output = self.mlp(self.layernorm_after(hidden_states))
        return hidden_states.add(self.drop_path(mlp_output), alpha=self.branch_factor)


class VitfDeepvitPreTrainedModel(VitfPreTrainedModel):
    config: VitfDeepvitConfig
    base_model_prefix = "deepvit"
    _no_split_modules = ["DeepvitEmbeddings", "DeepvitLayer"]
    _can_record_outputs = {"hidden_states": DeepvitLayer, "attentions": SelfAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        init_trunc_normal(module, std)
        if isinstance(module, PositionEmbeddings):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, DeepvitEmbeddings):
            init.trunc_normal_(module.cls_token, std=std)
        elif isinstance(module, HeadMixing):  # a 1x1 convolution to the original
            init_torch_default(module)


class VitfDeepvitModel(VitfDeepvitPreTrainedModel):
    """The bare encoder. `pooler_output` is the class token after the last norm."""

    def __init__(self, config: VitfDeepvitConfig):
        super().__init__(config)
        self.embeddings = DeepvitEmbeddings(config)
        rates = drop_path_rates(config.drop_path_rate, config.num_hidden_layers)
        self.layers = nn.ModuleList(
            [DeepvitLayer(config, *row) for row in zip(rates, config.transformed_layers, strict=True)]
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.num_prefix_tokens = 1
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
            `last_hidden_state` (B, N, C), after the last norm; `pooler_output` (B, C); `hidden_states`: the input of
            the first layer and the output of each; `attentions`: (B, h, N, N) a layer, mixed in layers that re-attend,
            where rows need not sum to 1.
        """
        hidden_states = self.embeddings(pixel_values, bool_masked_pos, mask_token)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class VitfDeepvitForImageClassification(ImageClassificationMixin, VitfDeepvitPreTrainedModel):
    """DeepViT with a linear classifier on the class token."""

    encoder_class = VitfDeepvitModel


class VitfDeepvitForMaskedImageModeling(MaskedImageModelingMixin, VitfDeepvitPreTrainedModel):
    """DeepViT that predicts the pixels of masked patches."""

    encoder_class = VitfDeepvitModel


class VitfDeepvitBackbone(VitfBackboneMixin, VitfDeepvitPreTrainedModel):
    """DeepViT as a backbone: the tokens of chosen layers as feature maps, all at the stride of the patch."""

    encoder_class = VitfDeepvitModel


__all__ = [
    "VitfDeepvitBackbone",
    "VitfDeepvitForImageClassification",
    "VitfDeepvitForMaskedImageModeling",
    "VitfDeepvitModel",
    "VitfDeepvitPreTrainedModel",
]

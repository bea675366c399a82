"""CCT, CVT and ViT-Lite (arXiv 2104.05704): a convolutional tokenizer, a small encoder, learned pooling of the
sequence.

Order of operations from SHI-Labs/Compact-Transformers@cd11f09 src/utils/{tokenizer,transformers}.py.

Shapes: B batch, N tokens (class token first where there is one, then the map row by row), C channels, H x W pixels, h
    heads.
"""

from itertools import pairwise

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import SelfAttention
from .configuration_cct import VitfCctConfig
from .configuration_vitf import pair
from .embeddings import (
    FrozenPositionEmbeddings,
    PositionEmbeddings,
    check_input,
)
from .layers import DropPath, Mlp, drop_path_rates, init_trunc_normal
from .modeling_vitf import (
    ImageClassificationMixin,
    MaskedImageModelingMixin,
    VitfBackboneMixin,
    VitfPreTrainedModel,
    encoder_forward,
    masked_embeddings,
)


def sine_table(num_positions: int, hidden_size: int) -> torch.Tensor:
    """
    The fixed table over the flattened sequence, (1, num_positions, C): sines on even channels, cosines on odd ones.
    """
    channels = torch.arange(hidden_size)
    # Angles in double, sines in single precision: bit for bit the table that the original's files hold.
    frequencies = 10000.0 ** (-2.0 * (channels // 2).double() / hidden_size)
    angles = (torch.arange(num_positions)[:, None] * frequencies).float()
    return torch.where(channels % 2 == 0, angles.sin(), angles.cos())[None]


class CctTokenizer(nn.Module):
    """
    (B, num_channels, H, W) to (B, h * w, C): convolutions with ReLU and max-pooling, or one convolution over patches.
    """

    hidden_channels = 64  # of all convolutions but the last (src/utils/tokenizer.py in_planes)

    def __init__(self, config: VitfCctConfig):
        super().__init__()
        self.num_channels = config.num_channels
        window = {"kernel_size": config.kernel_size, "stride": config.stride, "padding": config.padding}
        if not config.num_conv_layers:
            self.conv_layers = nn.ModuleList([nn.Conv2d(config.num_channels, config.hidden_size, **window)])
            self.pool = None
            return
        widths = [config.num_channels] + [self.hidden_channels] * (config.num_conv_layers - 1) + [config.hidden_size]
        self.conv_layers = nn.ModuleList(
            [nn.Conv2d(narrow, wide, bias=False, **window) for narrow, wide in pairwise(widths)]
        )
        self.pool = nn.MaxPool2d(config.pooling_kernel_size, config.pooling_stride, config.pooling_padding)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image of `height` x `width` pixels."""
        windows = []
        for conv in self.conv_layers:
            windows.append((conv.kernel_size[0], conv.stride[0], conv.padding[0]))
            if self.pool is not None:
                windows.append((self.pool.kernel_size, self.pool.stride, self.pool.padding))
        for kernel, stride, padding in windows:
            height, width = ((size + 2 * padding - kernel) // stride + 1 for size in (height, width))
        return height, width

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        # Padded windows fit any size; patches must tile the image.
        multiple = (1, 1) if self.pool is not None else self.conv_layers[0].stride
        check_input(pixel_values, self.num_channels, multiple)
        hidden_states = pixel_values
        for conv in self.conv_layers:
            hidden_states = conv(hidden_states)
            if self.pool is not None:
                hidden_states = self.pool(hidden_states.relu())
        return hidden_states.flatten(2).transpose(1, 2)


class CctEmbeddings(nn.Module):
    """(B, num_channels, H, W) to tokens (B, N, C), positions added."""

    def __init__(self, config: VitfCctConfig):
        super().__init__()
        self.patch_embeddings = CctTokenizer(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.pooling == "cls" else None
        self.position_embeddings = None
        if config.position_embedding_type != "none":
            is_learned = config.position_embedding_type == "learned"
            self.position_embeddings = (PositionEmbeddings if is_learned else FrozenPositionEmbeddings)(
                config.hidden_size,
                self.patch_embeddings.grid(*pair(config.image_size)),
                num_prefix_tokens=int(config.pooling == "cls"),
                interpolation="bilinear_half_pixel",
            )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None) -> torch.Tensor:
        tokens = self.patch_embeddings(pixel_values)
        tokens = masked_embeddings(tokens, bool_masked_pos, mask_token)
        if self.cls_token is not None:
            tokens = torch.cat((self.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        if self.position_embeddings is not None:
            grid = self.patch_embeddings.grid(*pixel_values.shape[-2:])
            tokens = tokens + self.position_embeddings(grid, tokens)
        return self.dropout(tokens)


class CctLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then the residual stream itself is normalised, then x + mlp(x)."""

    def __init__(self, config: VitfCctConfig, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_size
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = SelfAttention(config, hidden_size, config.num_attention_heads, qkv_bias=False)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, hidden_size, round(config.mlp_ratio * hidden_size))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = self.layernorm_after(
            hidden_states + self.drop_path(self.attention(self.layernorm_before(hidden_states), **kwargs)[0])
        )
        return hidden_states + self.drop_path(self.mlp(hidden_states))


class VitfCctPreTrainedModel(VitfPreTrainedModel):
    config: VitfCctConfig
    base_model_prefix = "cct"
    _no_split_modules = ["CctEmbeddings", "CctLayer"]
    _can_record_outputs = {"hidden_states": CctLayer, "attentions": SelfAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_trunc_normal(module, self.config.initializer_range)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight)
        elif isinstance(module, CctEmbeddings):
            if module.cls_token is not None:
                init.zeros_(module.cls_token)
            if self.config.position_embedding_type == "learned":
                init.trunc_normal_(module.position_embeddings.weight, std=0.2)
            elif self.config.position_embedding_type == "sine":
                weight = module.position_embeddings.weight
                init.copy_(weight, sine_table(*weight.shape[1:]).to(weight.device))


class VitfCctModel(VitfCctPreTrainedModel):
    """
    The bare encoder. `pooler_output` is the weighted mean of all tokens, or the class token.

    Args:
        add_pooling_layer (`bool`, *optional*, defaults to `True`):
            Whether to make the weights of the mean; heads that do not read `pooler_output` would train them in vain.
    """

    def __init__(self, config: VitfCctConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = CctEmbeddings(config)
        rates = drop_path_rates(config.drop_path_rate, config.num_hidden_layers)
        self.layers = nn.ModuleList([CctLayer(config, rate) for rate in rates])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention_pool = None
        if add_pooling_layer and config.pooling == "sequence":
            self.attention_pool = nn.Linear(config.hidden_size, 1)
        self.num_prefix_tokens = int(config.pooling == "cls")
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
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`).
            bool_masked_pos (`torch.BoolTensor` of shape `(B, number of map tokens)`, *optional*): Tokens to mask.
            mask_token (`torch.Tensor` of shape `(1, 1, C)`, *optional*): What masked tokens become.

        Returns:
            `last_hidden_state` (B, N, C), after the last norm; `pooler_output` (B, C);
            `hidden_states`: the input of the first layer and the output of each; `attentions`: (B, h, N, N) a layer.
        """
        hidden_states = self.embeddings(pixel_values, bool_masked_pos, mask_token)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        pooled = hidden_states[:, 0] if self.config.pooling == "cls" else None
        if self.attention_pool is not None:
            weights = self.attention_pool(hidden_states).softmax(dim=1)
            pooled = torch.matmul(weights.transpose(1, 2), hidden_states).squeeze(1)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)


class VitfCctForImageClassification(ImageClassificationMixin, VitfCctPreTrainedModel):
    """CCT with a linear classifier on the pooled output."""

    encoder_class = VitfCctModel


class VitfCctForMaskedImageModeling(MaskedImageModelingMixin, VitfCctPreTrainedModel):
    """CCT that predicts the pixels under masked tokens."""

    encoder_class = VitfCctModel
    encoder_kwargs = {"add_pooling_layer": False}


class VitfCctBackbone(VitfBackboneMixin, VitfCctPreTrainedModel):
    """CCT as a backbone: the tokens of chosen layers as feature maps, all at the stride of the tokenizer."""

    encoder_class = VitfCctModel
    encoder_kwargs = {"add_pooling_layer": False}


__all__ = [
    "VitfCctBackbone",
    "VitfCctForImageClassification",
    "VitfCctForMaskedImageModeling",
    "VitfCctModel",
    "VitfCctPreTrainedModel",
]

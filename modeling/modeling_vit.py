"""ViT (arXiv 2010.11929): patches as tokens, and a pre-norm transformer encoder.

Order of operations from google-research/vision_transformer@c6de1e5 vit_jax/models_vit.py; layer scale and positions
without a class row from facebookresearch/deit@7e160fe models_v2.py; axial rotary positions from vit-pytorch 1.26.11
rvt.py; what CLIP, SigLIP, DINOv2, RADIO, AIMv2 and BEiT-3 change from timm 1.0.31 models/vision_transformer.py; what
vit-pytorch's ViT and SimpleViT change from vit-pytorch 1.26.11 vit.py and simple_vit.py.

Shapes: B batch, N tokens (class, registers, then patches row by row), C channels, H x W pixels, h heads.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_vit import VitfVitConfig
from .configuration_vitf import pair
from .embeddings import (
    AxialRotary,
    FrozenPositionEmbeddings,
    PatchEmbeddings,
    PositionEmbeddings,
    SincosPositions,
    simple_sincos_positions,
    sincos_positions,
)
from .layers import DropPath, LayerScale, drop_path_rates, init_jax, init_lecun_normal, init_trunc_normal
from .mae_decoder import MaeDecoder, PreTrainingMixin, choose_tokens, fixed_table
from .modeling_vitf import (
    ImageClassificationMixin,
    MaskedImageModelingMixin,
    VitfBackboneMixin,
    VitfPreTrainedModel,
    encoder_forward,
    masked_embeddings,
)
from .resnet_stem import ResnetPatchEmbeddings, ResnetUnit
from .vit_parts import AttentionPooling, PixelLayerNorm, VitAttention, VitMlp, make_norm


def whole_patches(pixel_values: torch.Tensor, config: VitfVitConfig) -> torch.Tensor:
    """The pixels of whole patches, where `drop_incomplete_patches` says that the others are left out."""
    if not config.drop_incomplete_patches:
        return pixel_values
    rows, columns = pair(config.patch_size)
    height, width = pixel_values.shape[-2:]
    return pixel_values[..., : height // rows * rows, : width // columns * columns]


class VitEmbeddings(nn.Module):
    """(B, num_channels, H, W) to tokens (B, N, C): class token, register tokens, patches; positions added."""

    def __init__(self, config: VitfVitConfig):
        super().__init__()
        hidden_size = config.hidden_size
        self.config = config
        self.pixel_layernorm = nn.Identity()
        if config.pixel_layernorm:
            self.pixel_layernorm = PixelLayerNorm(config.num_channels, config.patch_size, config.layer_norm_eps)
        if config.resnet_depths is None:
            self.patch_embeddings = PatchEmbeddings(config.num_channels, hidden_size, config.patch_size)
        else:
            self.patch_embeddings = ResnetPatchEmbeddings(
                config.num_channels,
                hidden_size,
                config.patch_size,
                config.resnet_width,
                config.resnet_depths,
                config.resnet_epsilons,
            )
        if not config.patch_bias:
            self.patch_embeddings.projection.register_parameter("bias", None)
        self.patch_layernorm = make_norm(config) if config.patch_layernorm else nn.Identity()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size)) if config.use_cls_token else None
        self.register_tokens = None
        if config.num_register_tokens:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, hidden_size))
        self.position_embeddings = None
        if config.position_embedding_type == "learned":
            self.position_embeddings = PositionEmbeddings(
                hidden_size,
                self.patch_embeddings.grid(*pair(config.image_size)),
                num_prefix_tokens=config.num_prefix_positions,
                interpolation=config.position_interpolation,
            )
        elif config.position_embedding_type in ("sincos", "sincos_simple"):
            is_simple = config.position_embedding_type == "sincos_simple"
            self.position_embeddings = SincosPositions(
                hidden_size, simple_sincos_positions if is_simple else sincos_positions
            )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layernorm = make_norm(config) if config.pre_layernorm else nn.Identity()

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None, visible=None) -> torch.Tensor:
        pixel_values = whole_patches(pixel_values, self.config)
        patches = self.patch_layernorm(self.patch_embeddings(self.pixel_layernorm(pixel_values)))
        patches = masked_embeddings(patches, bool_masked_pos, mask_token)
        grid = self.patch_embeddings.grid(*pixel_values.shape[-2:])
        prefix = [token for token in (self.cls_token, self.register_tokens) if token is not None]
        if self.position_embeddings is not None:
            positions = self.position_embeddings(grid, patches)
            rows = self.position_embeddings.num_prefix_tokens
            for index, token in enumerate(prefix):
                if rows:
                    prefix[index] = token + positions[:, : token.shape[1]]
                    rows -= token.shape[1]
                    positions = positions[:, token.shape[1] :]
            patches = patches + positions
        if visible is not None:
            patches = choose_tokens(patches, visible)
        tokens = torch.cat([token.expand(patches.shape[0], -1, -1) for token in prefix] + [patches], dim=1)
        return self.layernorm(self.dropout(tokens))


class VitLayer(GradientCheckpointingLayer):
    """
    x + attention(norm(x)), then x + mlp(norm(x)); each branch with optional layer scale, and drop path. With
    `norm_position="post"` the norms move to the outputs of the branches.
    """

    def __init__(self, config: VitfVitConfig, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_size
        self.post_norm = config.norm_position == "post"
        self.layernorm_before = make_norm(config)
        self.attention = VitAttention(config)
        self.layernorm_after = make_norm(config)
        self.mlp = VitMlp(config)
        self.layer_scale1 = self.layer_scale2 = nn.Identity()
        if config.layer_scale_init_value is not None:
            self.layer_scale1 = LayerScale(hidden_size, config.layer_scale_init_value)
            self.layer_scale2 = LayerScale(hidden_size, config.layer_scale_init_value)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        # Nested, not named step by step: what a name holds stays in memory until the layer ends.
        if self.post_norm:
            hidden_states = hidden_states + self.drop_path(
                self.layernorm_before(self.attention(hidden_states, **kwargs)[0])
            )
            return hidden_states + self.drop_path(self.layernorm_after(self.mlp(hidden_states)))
        hidden_states = hidden_states + self.drop_path(
            self.layer_scale1(self.attention(self.layernorm_before(hidden_states), **kwargs)[0])
        )
        return hidden_states + self.drop_path(self.layer_scale2(self.mlp(self.layernorm_after(hidden_states))))


class VitfVitPreTrainedModel(VitfPreTrainedModel):
    config: VitfVitConfig
    base_model_prefix = "vit"
    _no_split_modules = ["VitEmbeddings", "VitLayer"]
    _can_record_outputs = {"hidden_states": VitLayer, "attentions": VitAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, PositionEmbeddings):
            init.normal_(module.weight, std=std)
        elif isinstance(module, VitEmbeddings) and module.register_tokens is not None:
            init.normal_(module.register_tokens, std=std)
        elif isinstance(module, AttentionPooling):
            init.xavier_uniform_(module.query)
        if self.config.initialization == "trunc_normal":
            init_trunc_normal(module, std)
            if isinstance(module, VitEmbeddings) and module.cls_token is not None:
                init.trunc_normal_(module.cls_token, std=std)
        else:
            self._init_jax(module)

    def _init_jax(self, module: nn.Module) -> None:
        """The initialisation of models_vit.py, with a zero class token."""
        init_jax(module)
        if isinstance(module, ResnetUnit):
            init.zeros_(module.norm3.weight)
        elif isinstance(module, VitfVitModel) and module.pre_logits is not None:
            init_lecun_normal(module.pre_logits.weight)
        elif isinstance(module, LayerScale):
            init.constant_(module.weight, module.init_value)
        elif isinstance(module, VitEmbeddings) and module.cls_token is not None:
            init.zeros_(module.cls_token)
        elif isinstance(module, AttentionPooling):
            for linear in (module.q, module.kv, module.proj):
                init.xavier_uniform_(linear.weight)


class VitfVitModel(VitfVitPreTrainedModel):
    """
    The bare encoder. `pooler_output` is the class token, the mean or what attention pools, through the layers after
    pooling where there are any.

    Args:
        add_pooling_layer (`bool`, *optional*, defaults to `True`): Whether to make the layers that only `pooler_output`
            passes; heads that do not read it would train them in vain.
    """

    def __init__(self, config: VitfVitConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = VitEmbeddings(config)
        rates = drop_path_rates(config.drop_path_rate, config.num_hidden_layers, config.drop_path_schedule)
        self.layers = nn.ModuleList([VitLayer(config, rate) for rate in rates])
        self.layernorm = make_norm(config) if config.final_layernorm == "tokens" else nn.Identity()
        self.attention_pooling = self.pre_logits = None
        self.pooled_layernorm = nn.Identity()
        if add_pooling_layer and config.pooling == "map":
            self.attention_pooling = AttentionPooling(config)
        if add_pooling_layer and config.final_layernorm == "pooled":
            self.pooled_layernorm = make_norm(config)
        if add_pooling_layer and config.representation_size is not None:
            self.pre_logits = nn.Linear(config.hidden_size, config.representation_size)
        self.num_prefix_tokens = int(config.use_cls_token) + config.num_register_tokens
        self.rotary = None
        if config.position_embedding_type == "rotary":
            head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
            self.rotary = AxialRotary(head_dim, max(pair(config.image_size)), self.num_prefix_tokens)
        self.post_init()

    @encoder_forward
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        mask_token: torch.Tensor | None = None,
        visible: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`):
                H and W multiples of the patch size, unless `drop_incomplete_patches`.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, number of patches)`, *optional*): Patches to mask.
            mask_token (`torch.Tensor` of shape `(1, 1, C)`, *optional*): What masked patches become.
            visible (`torch.LongTensor` of shape `(B, K)`, *optional*):
                The patches of each image that are read, by number and in this order; all by default.

        Returns:
            `last_hidden_state` (B, N, C), after the last norm; `pooler_output` (B, `config.pooler_output_size`);
            `hidden_states`: the input of the first layer and the output of each; `attentions`: (B, h, N, N) a layer,
            that of pooling not among them.
        """
        hidden_states = self.embeddings(pixel_values, bool_masked_pos, mask_token, visible)
        if self.rotary is not None:
            grid = self.embeddings.patch_embeddings.grid(*pixel_values.shape[-2:])
            kwargs["rotary"] = self.rotary(grid, like=hidden_states)
            if visible is not None:
                prefix = torch.arange(self.num_prefix_tokens, device=visible.device).expand(visible.shape[0], -1)
                rows = torch.cat((prefix, visible + self.num_prefix_tokens), dim=1)
                kwargs["rotary"] = tuple(angles[rows][:, None] for angles in kwargs["rotary"])
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        if self.config.pooling == "cls":
            pooled = hidden_states[:, 0]
        else:
            tokens = hidden_states if self.config.pool_prefix_tokens else hidden_states[:, self.num_prefix_tokens :]
            pooled = tokens.mean(dim=1) if self.attention_pooling is None else self.attention_pooling(tokens)
            if self.config.pooling == "cls_mean":
                pooled = torch.cat((hidden_states[:, 0], pooled), dim=-1)
        pooled = self.pooled_layernorm(pooled)
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

    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None, **kwargs):
        """As in [`MaskedImageModelingMixin`]; pixels that are left out of all patches are not predicted."""
        return super().forward(whole_patches(pixel_values, self.config), bool_masked_pos, **kwargs)


class MaeInitialisation:
    """What MAE starts from."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """
        That of facebookresearch/mae@efb2a80 models_mae.py: Xavier uniform linear layers, patches among them; what it
        does not have as the encoder has it.
        """
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, PatchEmbeddings):
            kernel = module.projection.weight
            inputs, outputs = kernel[0].numel(), kernel.shape[0]
            bound = (6 / (inputs + outputs)) ** 0.5
            init.uniform_(kernel, -bound, bound)
            if module.projection.bias is not None:
                init.uniform_(module.projection.bias, -(inputs**-0.5), inputs**-0.5)
        elif isinstance(module, FrozenPositionEmbeddings):
            init.copy_(module.weight, fixed_table(module))
        elif isinstance(module, VitEmbeddings):
            for token in (module.cls_token, module.register_tokens):
                if token is not None:
                    init.normal_(token, std=std)
        elif isinstance(module, MaeDecoder):
            init.normal_(module.mask_token, std=std)
        elif not isinstance(module, (VitAttention, VitMlp)):  # their layers have been initialised
            super()._init_weights(module)


class VitMaskedEncoder(MaeInitialisation, VitfVitModel):
    """The encoder while MAE trains it: its table of positions is fixed, and starts as sine-cosine."""

    def __init__(self, config: VitfVitConfig, add_pooling_layer: bool = True):
        super().__init__(config, add_pooling_layer)
        learned = self.embeddings.position_embeddings
        if isinstance(learned, PositionEmbeddings):
            self.embeddings.position_embeddings = FrozenPositionEmbeddings(
                config.hidden_size, learned.grid, learned.num_prefix_tokens, learned.interpolation
            )
            self.post_init()


class VitfVitForPreTraining(MaeInitialisation, PreTrainingMixin, VitfVitPreTrainedModel):
    """
    ViT that reads a quarter of the patches and predicts the pixels of the others (MAE). The layers of its decoder are
    those of the plain ViT, whatever the encoder's are.
    """

    encoder_class = VitMaskedEncoder
    encoder_kwargs = {"add_pooling_layer": False}

    def make_decoder_layers(self) -> nn.ModuleList:
        sizes = self.config.decoder_config()
        layers = nn.ModuleList([VitLayer(sizes, 0.0) for _ in range(sizes.num_hidden_layers)])
        for layer in layers:
            layer.attention.config = self.config  # where `set_attn_implementation` writes
        return layers

    def hide(self, pixel_values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Blackens hidden patches in front of a ResNet, which mixes them with their neighbours."""
        if self.config.resnet_depths is None:
            return pixel_values
        rows, columns = pair(self.config.patch_size)
        mask = mask.view(-1, 1, pixel_values.shape[2] // rows, pixel_values.shape[3] // columns)
        return pixel_values.masked_fill(mask.repeat_interleave(rows, 2).repeat_interleave(columns, 3), 0)

    def targets(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return super().targets(whole_patches(pixel_values, self.config))

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor | None = None, **kwargs):
        """As in [`PreTrainingMixin`]; pixels that are left out of all patches are not predicted."""
        return super().forward(whole_patches(pixel_values, self.config), noise, **kwargs)


class VitfVitBackbone(VitfBackboneMixin, VitfVitPreTrainedModel):
    """ViT as a backbone: the tokens of chosen layers as feature maps, all at the stride of the patch."""

    encoder_class = VitfVitModel
    encoder_kwargs = {"add_pooling_layer": False}


__all__ = [
    "VitfVitBackbone",
    "VitfVitForImageClassification",
    "VitfVitForMaskedImageModeling",
    "VitfVitForPreTraining",
    "VitfVitModel",
    "VitfVitPreTrainedModel",
]

"""CrossViT (arXiv 2103.14899): two ViTs with patches of different size, whose class tokens attend to each other's
patches.

Order of operations from IBM/CrossViT@3f7ab77 models/crossvit.py (timm 0.4.12 vision_transformer.py for the layers).

Shapes: B batch, N tokens of the small branch, M of the large one (class token, then patches row by row), C and D
channels of the two, H x W pixels, h heads.
"""

from itertools import zip_longest

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import SelfAttention, attend
from .configuration_crossvit import CONVOLUTIONS, VitfCrossvitConfig
from .configuration_vitf import pair
from .embeddings import PositionEmbeddings, check_input
from .layers import DropPath, Mlp, drop_path_rates, init_trunc_normal
from .modeling_vitf import (
    ImageClassificationMixin,
    LayerGroup,
    MaskedImageModelingMixin,
    VitfBackboneMixin,
    VitfPreTrainedModel,
    encoder_forward,
    masked_embeddings,
)

SMALL, LARGE = 0, 1


class CrossvitPatchEmbeddings(nn.Module):
    """
    The image as one branch sees it, in patches: (B, num_channels, H, W) to (B, rows * columns, channels of the branch).
    """

    def __init__(self, config: VitfCrossvitConfig, branch: int):
        super().__init__()
        self.config = config
        self.branch = branch
        patch, width = config.patch_sizes[branch], config.hidden_sizes[branch]
        if config.patch_embedding_type == "linear":
            self.projection = nn.Conv2d(config.num_channels, width, kernel_size=patch, stride=patch)
        else:
            widths = (config.num_channels, width // 4, width // 2, width)
            convolutions = [
                nn.Conv2d(widths[i], widths[i + 1], kernel, stride, padding)
                for i, (kernel, stride, padding) in enumerate(CONVOLUTIONS[patch])
            ]
            first, second, third = convolutions
            self.projection = nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True), third)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of `height` x `width` pixels."""
        patch = self.config.patch_sizes[self.branch]
        height, width = self.config.branch_image_size(self.branch, height, width)
        return height // patch, width // patch

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        size = self.config.branch_image_size(self.branch, *pixel_values.shape[-2:])
        if size != tuple(pixel_values.shape[-2:]):
            pixel_values = nn.functional.interpolate(pixel_values, size=size, mode="bicubic", align_corners=False)
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


class CrossvitBranchEmbeddings(nn.Module):
    """(B, num_channels, H, W) to the tokens of one branch: class token, then patches, positions added to all."""

    def __init__(self, config: VitfCrossvitConfig, branch: int):
        super().__init__()
        width = config.hidden_sizes[branch]
        self.patch_embeddings = CrossvitPatchEmbeddings(config, branch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = PositionEmbeddings(
            width,
            self.patch_embeddings.grid(*pair(config.image_size)),
            num_prefix_tokens=1,
            interpolation="bicubic",
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None) -> torch.Tensor:
        patches = self.patch_embeddings(pixel_values)
        patches = masked_embeddings(patches, bool_masked_pos, mask_token)
        tokens = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        grid = self.patch_embeddings.grid(*pixel_values.shape[-2:])
        return self.dropout(tokens + self.position_embeddings(grid, tokens))


class CrossvitEmbeddings(nn.Module):
    """(B, num_channels, H, W) to the tokens of both branches, (B, N, C) and (B, M, D)."""

    def __init__(self, config: VitfCrossvitConfig):
        super().__init__()
        self.config = config
        self.branches = nn.ModuleList([CrossvitBranchEmbeddings(config, branch) for branch in (SMALL, LARGE)])

    @property
    def patch_embeddings(self) -> CrossvitPatchEmbeddings:
        """The patch embeddings of the small branch, whose patches are the feature maps."""
        return self.branches[SMALL].patch_embeddings

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None) -> tuple[torch.Tensor, torch.Tensor]:
        size, configured = tuple(pixel_values.shape[-2:]), pair(self.config.image_size)
        fixed = self.config.input_resizing == "fixed"
        check_input(pixel_values, self.config.num_channels, (1, 1) if fixed else pair(self.config.patch_sizes[SMALL]))
        if fixed and mask_token is not None and size != configured:
            raise ValueError(
                f"image size {size[0]}x{size[1]} does not fit: with input_resizing='fixed' masked image modeling needs "
                f"{configured[0]}x{configured[1]}; input_resizing='native' takes other sizes"
            )
        small, large = self.branches
        # What is masked is zero in the pixels: the large branch, whose patches lie elsewhere, sees no more than that.
        return small(pixel_values, bool_masked_pos, mask_token), large(pixel_values)


class CrossvitCrossAttention(nn.Module):
    """Attention of the first token to itself and to the others; rows of `key_value` are [keys; values]."""

    is_causal = False

    def __init__(self, config: VitfCrossvitConfig, hidden_size: int, num_heads: int):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.scaling = (hidden_size // num_heads) ** -0.5
        self.query = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, C) to the first token (B, 1, C) and the map (B, h, 1, N)."""
        batch, tokens, _ = hidden_states.shape
        query = self.query(hidden_states[:, :1]).view(batch, 1, self.num_heads, -1).transpose(1, 2)
        key, value = (
            self.key_value(hidden_states).view(batch, tokens, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
        context, probabilities = attend(self, query, key, value, self.scaling, **kwargs)
        return self.dropout(self.proj(context)), probabilities


class CrossvitLayer(GradientCheckpointingLayer):
    """Of one branch: x + attention(norm(x)), then x + mlp(norm(x)); drop path on both summands."""

    def __init__(self, config: VitfCrossvitConfig, branch: int, drop_path_rate: float):
        super().__init__()
        width = config.hidden_sizes[branch]
        self.layernorm_before = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = SelfAttention(config, width, config.num_heads[branch], config.qkv_bias)
        self.layernorm_after = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, width, round(config.mlp_ratios[branch] * width))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.drop_path(
            self.attention(self.layernorm_before(hidden_states), **kwargs)[0]
        )
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))


class CrossvitProjection(nn.Module):
    """From the width of one branch to that of the other: norm, activation, linear layer."""

    def __init__(self, config: VitfCrossvitConfig, in_features: int, out_features: int):
        super().__init__()
        self.layernorm = nn.LayerNorm(in_features, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.linear(self.activation(self.layernorm(hidden_states)))


class CrossvitFusion(GradientCheckpointingLayer):
    """
    The class token c of a branch visits the patches y of the other: c' = into(c), c' + attention(norm([c', y])), and
    back(c') takes the place of c. Nothing of the old c is added, and all patches stay as they are.
    """

    def __init__(self, config: VitfCrossvitConfig, branch: int, drop_path_rate: float):
        super().__init__()
        own, other = config.hidden_sizes[branch], config.hidden_sizes[1 - branch]
        self.into = CrossvitProjection(config, own, other)
        self.layernorm = nn.LayerNorm(other, eps=config.layer_norm_eps)
        self.attention = CrossvitCrossAttention(config, other, config.num_heads[1 - branch])
        self.drop_path = DropPath(drop_path_rate)
        self.back = CrossvitProjection(config, other, own)

    def forward(self, hidden_states: torch.Tensor, others: torch.Tensor, **kwargs) -> torch.Tensor:
        """
        Tokens of its own branch (B, N, C) and of the other (B, M, D) to the first (B, N, C), with a new class token.
        """
        cls_token = self.into(hidden_states[:, :1])
        cls_token = cls_token + self.drop_path(
            self.attention(self.layernorm(torch.cat((cls_token, others[:, 1:]), dim=1)), **kwargs)[0]
        )
        return torch.cat((self.back(cls_token), hidden_states[:, 1:]), dim=1)


class CrossvitStage(nn.Module):
    """
    Layers of each branch, then the exchange between them; both fusions read what the layers give.

    Args:
        drop_path_rates (`list[float]`): Of the longer branch; the fusions have the last. fused (`tuple[int, ...]`):
        Branches whose class token is read later, so that it is worth a fusion. A stage without
            fusions has no layers of the large branch either: only the small one's patches leave it.
    """

    def __init__(
        self, config: VitfCrossvitConfig, depths: list[int], drop_path_rates: list[float], fused: tuple[int, ...]
    ):
        super().__init__()
        branches = (SMALL, LARGE) if fused else (SMALL,)
        self.layers = nn.ModuleList(
            [
                nn.ModuleList([CrossvitLayer(config, branch, rate) for rate in drop_path_rates[: depths[branch]]])
                for branch in branches
            ]
        )
        self.fusions = nn.ModuleList([CrossvitFusion(config, branch, drop_path_rates[-1]) for branch in fused])

    def forward(self, small: torch.Tensor, large: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, N, C) and (B, M, D) to the same shapes."""
        states = [small, large]
        for branch, layers in enumerate(self.layers):
            for layer in layers:
                states[branch] = layer(states[branch], **kwargs)
        fused = [fusion(states[branch], states[1 - branch], **kwargs) for branch, fusion in enumerate(self.fusions)]
        return (*fused, *states[len(fused) :])


class VitfCrossvitPreTrainedModel(VitfPreTrainedModel):
    config: VitfCrossvitConfig
    base_model_prefix = "crossvit"
    _no_split_modules = ["CrossvitBranchEmbeddings", "CrossvitLayer", "CrossvitFusion"]
    _can_record_outputs = {"hidden_states": CrossvitStage, "attentions": [SelfAttention, CrossvitCrossAttention]}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        init_trunc_normal(module, std)
        if isinstance(module, PositionEmbeddings):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, CrossvitBranchEmbeddings):
            init.trunc_normal_(module.cls_token, std=std)

    def feature_map(self, hidden_states: torch.Tensor, height: int, width: int, stage: int = -1) -> torch.Tensor:
        """As elsewhere; of the tokens of both branches, (B, N + M, C + D), the map of the small one."""
        channels = self.config.hidden_sizes[SMALL]
        if hidden_states.shape[-1] != channels:
            rows, columns = self.config.feature_map_sizes(height, width)[stage]
            hidden_states = hidden_states[:, : 1 + rows * columns, :channels]
        return super().feature_map(hidden_states, height, width, stage)


class VitfCrossvitModel(VitfCrossvitPreTrainedModel):
    """
    The bare encoder. `pooler_output` is the class tokens of both branches after the last norms, side by side.

    Args:
        add_pooling_layer (`bool`, *optional*, defaults to `True`):
            Whether to make what only `pooler_output` reads: of the last stage the layers of the large branch and the
            fusions, and the fusion before that of the large branch. Heads that read patches would train them in vain.
    """

    def __init__(self, config: VitfCrossvitConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = CrossvitEmbeddings(config)
        lengths = [max(depths) for depths in config.depths]
        rates = iter(drop_path_rates(config.drop_path_rate, sum(lengths)))
        fused = [(SMALL, LARGE)] * len(lengths)
        if not add_pooling_layer:
            fused = [*fused[2:], (SMALL,), ()][-len(lengths) :]
        self.stages = nn.ModuleList(
            [
                CrossvitStage(config, depths, [next(rates) for _ in range(length)], branches)
                for depths, length, branches in zip(config.depths, lengths, fused, strict=True)
            ]
        )
        self.layernorm = nn.LayerNorm(config.hidden_sizes[SMALL], eps=config.layer_norm_eps)
        self.large_layernorm = None
        if add_pooling_layer:
            self.large_layernorm = nn.LayerNorm(config.hidden_sizes[LARGE], eps=config.layer_norm_eps)
        self.num_prefix_tokens = 1
        self.post_init()

    def layer_groups(self) -> list[LayerGroup]:
        """The branches run side by side, so that their layers pair off from the first on; then comes the exchange."""
        groups: list[LayerGroup] = [[self.embeddings]]
        for stage in self.stages:
            pairs = zip_longest(*stage.layers)
            groups += [[layer for layer in layers if layer is not None] for layers in pairs]
            if len(stage.fusions):
                groups.append(list(stage.fusions))
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
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`):
                H and W multiples of the small patch, or with `input_resizing="fixed"` any.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, N - 1)`, *optional*): Patches of the small branch to mask.
            mask_token (`torch.Tensor` of shape `(1, 1, C)`, *optional*): What masked patches become.

        Returns:
            `last_hidden_state` (B, N + M, C + D), the tokens of the small branch, then those of the large one, after
            their norms: each in its own channels, with zeros in those of the other, so that one linear layer reads
            both. Without pooling layer (B, N, C), those of the small branch. `pooler_output` (B, C + D), or `None`
            without it; `hidden_states`: tokens of the small branch (B, N, C), the input of the first stage and the
            output of each; `attentions`, stage by stage: (B, h, N, N) a layer of the small branch, (B, h, M, M) a layer
            of the large one, (B, h, 1, M) of the small class token over large patches, (B, h, 1, N) of the large one
            over small patches.
        """
        small, large = self.embeddings(pixel_values, bool_masked_pos, mask_token)
        for stage in self.stages:
            small, large = stage(small, large, **kwargs)
        small = self.layernorm(small)
        if self.large_layernorm is None:
            return BaseModelOutputWithPooling(last_hidden_state=small)
        large = self.large_layernorm(large)
        pooled = torch.cat((small[:, 0], large[:, 0]), dim=1)
        own, other = self.config.hidden_sizes
        both = (nn.functional.pad(small, (0, other)), nn.functional.pad(large, (own, 0)))
        return BaseModelOutputWithPooling(last_hidden_state=torch.cat(both, dim=1), pooler_output=pooled)


class CrossvitClassifier(nn.Module):
    """The mean of a linear classifier of each branch: `pooler_output` (B, C + D) to (B, num_labels)."""

    def __init__(self, config: VitfCrossvitConfig):
        super().__init__()
        self.hidden_sizes = config.hidden_sizes
        self.heads = nn.ModuleList([nn.Linear(width, config.num_labels) for width in config.hidden_sizes])

    def branch_logits(self, pooled: torch.Tensor) -> list[torch.Tensor]:
        """(B, C + D) to the logits (B, num_labels) of each branch."""
        parts = pooled.split(self.hidden_sizes, dim=1)
        return [head(part) for head, part in zip(self.heads, parts, strict=True)]

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return sum(self.branch_logits(pooled)) / len(self.heads)


class VitfCrossvitForImageClassification(ImageClassificationMixin, VitfCrossvitPreTrainedModel):
    """CrossViT with a linear classifier on the class token of each branch."""

    encoder_class = VitfCrossvitModel

    def make_classifier(self) -> nn.Module:
        return CrossvitClassifier(self.config) if self.config.num_labels > 0 else nn.Identity()


class VitfCrossvitForMaskedImageModeling(MaskedImageModelingMixin, VitfCrossvitPreTrainedModel):
    """CrossViT that predicts the pixels of masked patches of the small branch."""

    encoder_class = VitfCrossvitModel
    encoder_kwargs = {"add_pooling_layer": False}


class VitfCrossvitBackbone(VitfBackboneMixin, VitfCrossvitPreTrainedModel):
    """CrossViT as a backbone: the patches of the small branch after chosen stages, all at the stride of its patch."""

    encoder_class = VitfCrossvitModel
    encoder_kwargs = {"add_pooling_layer": False}


__all__ = [
    "VitfCrossvitBackbone",
    "VitfCrossvitForImageClassification",
    "VitfCrossvitForMaskedImageModeling",
    "VitfCrossvitModel",
    "VitfCrossvitPreTrainedModel",
]

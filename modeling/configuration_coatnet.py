"""
Configuration of CoAtNet (Dai et al., "CoAtNet: Marrying Convolution and Attention for All Data Sizes", arXiv
2106.04803).
"""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_vitf import HALF_MEAN, HALF_STD, IMAGENET_MEAN, IMAGENET_STD, VitfPyramidConfig, pair

_PREPARED = {"crop_pct": 0.95}
# Widths, with heads of 32 channels, and depths. timm's rw models have a stem that widens.
_NANO = {"stem_channels": [32, 64], "hidden_sizes": [64, 128, 256, 512], "num_heads": [2, 4, 8, 16]}
_NANO_DEPTHS = {"depths": [3, 4, 6, 3], "conv_depths": [3, 4, 0, 0]}
_SMALL = {"stem_channels": [32, 64]}
_SMALL_DEPTHS = {"depths": [2, 3, 7, 2]}
_DEEP = {"depths": [2, 6, 14, 2], "conv_depths": [2, 6, 0, 0]}
_DEEPER = {"depths": [2, 12, 28, 2], "conv_depths": [2, 12, 0, 0]}
_WIDE = {"hidden_sizes": [128, 256, 512, 1024], "num_heads": [4, 8, 16, 32]}
_WIDER = {"hidden_sizes": [192, 384, 768, 1536], "num_heads": [6, 12, 24, 48]}
_WIDEST = {"hidden_sizes": [256, 512, 1280, 2048], "num_heads": [8, 16, 40, 64]}
# What the rw models share, what most of them add, and what the first of them add to that.
_RW = {**_PREPARED, "conv_act": "silu", "expand_output": False, "expand_first": False}
_RW_ACT = {**_RW, "pre_norm_act": True, "conv_bias": False}
_RW_EARLY = {**_RW_ACT, "se_position": "before_norm", "se_act": "relu", "shortcut_bias": False}
_RMLP = {"position_bias_type": "mlp"}
_RMLP_2 = {
    **_RW_ACT,
    **_RMLP,
    **_WIDE,
    **_DEEP,
    "stem_channels": [64, 128],
    "layer_scale_init_value": 1e-6,
}


@strict
class VitfCoatnetConfig(VitfPyramidConfig):
    r"""
    CoAtNet. Differs from ViT by stages that begin as convolutional ones (inverted bottlenecks with
    squeeze-and-excitation), attention with a bias by relative position on the whole map in the others, and no other
    positions or class token.

    No official code or weights exist: the fields below are the choices in which timm's models, the reference, differ
    from each other. The defaults are those of its models after the paper, `coatnet_0_224`; the "rw" ones have weights.

    Args:
        patch_size (`int`, *optional*, defaults to 2): Stride of the stem, in pixels. Every stage halves the map once
        more. stem_channels (`list[int]`, *optional*, defaults to `[64, 64]`): Channels of the two convolutions of the
        stem. hidden_sizes (`list[int]`, *optional*, defaults to `[96, 192, 384, 768]`): Channels of each stage. depths
        (`list[int]`, *optional*, defaults to `[2, 3, 5, 2]`): Layers of each stage. conv_depths (`list[int]`,
        *optional*, defaults to `[2, 3, 0, 0]`):
            How many of these, the first ones, are convolutional.
        num_heads (`list[int]`, *optional*, defaults to `[3, 6, 12, 24]`): Attention heads of each stage; a stage
            without attention has none of them. The first layer of a stage attends with fewer, as wide ones, where
            `expand_first` is `False`.
        conv_layer_type (`str`, *optional*, defaults to `"mbconv"`):
            Convolutional layers: `"mbconv"`, inverted bottlenecks with batch norms, or `"convnext"` (arXiv 2201.03545).
        conv_act (`str`, *optional*, defaults to `"gelu"`): Activation of the stem and of inverted bottlenecks.
        pre_norm_act (`bool`, *optional*, defaults to `False`):
            Whether it also follows the first norm of an inverted bottleneck.
        conv_expand_ratio (`float`, *optional*, defaults to 4.0):
            Channels inside a convolutional layer over those of its output, or of its input.
        expand_output (`bool`, *optional*, defaults to `True`): Whether over those of the output, in inverted
        bottlenecks. conv_bias (`bool`, *optional*, defaults to `True`):
            Whether the last convolution of a convolutional layer and the one on its shortcut have a bias.
        stride_mode (`str`, *optional*, defaults to `"dw"`):
            What shrinks the map in a convolutional layer: the depth-wise convolution (`"dw"`), the one that expands it
            (`"1x1"`, the paper's choice), or an average before that (`"pool"`).
        pool_type (`str`, *optional*, defaults to `"average"`): What shrinks the map on shortcuts and before attention:
            `"average"` of 2 x 2 or `"max"` of 3 x 3, as in the paper.
        se_ratio (`float`, *optional*, defaults to 0.25): Channels that squeeze-and-excitation squeezes to, over those
            of the output with `expand_output`, else over those it weights.
        se_act (`str`, *optional*, defaults to `"silu"`): Its activation.
        se_position (`str`, *optional*, defaults to `"after_norm"`):
            Where it stands: after the norm of the depth-wise convolution and the activation, or `"before_norm"`.
        mlp_ratio (`float`, *optional*, defaults to 4.0): Width of a feed-forward layer over that of the stage.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation of feed-forward layers.
        expand_first (`bool`, *optional*, defaults to `True`):
            Whether the first attention of a stage works at the width of its output, or at that of its input.
        shortcut_bias (`bool`, *optional*, defaults to `True`):
            Whether the convolution on the shortcut of an attention layer has a bias.
        position_bias_type (`str`, *optional*, defaults to `"table"`): `"table"` learns a bias for each relative
            position and head, `"mlp"` makes it of the logarithm of the distances by a network of two layers.
        position_bias_size (`int`, *optional*, defaults to 512): Width of that network. position_bias_dropout_prob
        (`float`, *optional*, defaults to 0.125): Dropout within that network. norm_type (`str`, *optional*, defaults to
        `"layer"`): Norms of attention layers and the last one: `"layer"` or `"batch"`. layer_scale_init_value (`float`,
        *optional*):
            Initial value of layer scale (arXiv 2103.17239) in attention layers; none by default.
        representation_size (`int`, *optional*): Width of a tanh layer before the classifier, which then reads the norm
            of the mean, not the mean of the norms.
        initialization (`str`, *optional*, defaults to `"vit_eff"`): `"vit_eff"`: convolutions normal by their fan-out,
            attention layers Xavier uniform; `"normal"`: both normal with `initializer_range`. ConvNeXt layers are
            PyTorch's own in either.

    The other fields are those of [`VitfConfig`]. `layer_norm_eps` is also that of batch norms in attention layers.
    """

    model_type = "vitf_coatnet"
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {"stages.*.layers.*": "free_full_weight"}
    PER_STAGE: ClassVar[tuple[str, ...]] = (*VitfPyramidConfig.PER_STAGE, "conv_depths")
    PREPROCESSING: ClassVar[dict[str, Any]] = {
        **VitfPyramidConfig.PREPROCESSING,
        "image_mean": HALF_MEAN,
        "image_std": HALF_STD,
    }

    # timm 1.0.31 timm/models/maxxvit.py model_cfgs; sizes of the first six after table 3 of arXiv 2106.04803.
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "coatnet_0_224": {**_PREPARED, "representation_size": 768},
        "coatnet_1_224": {**_PREPARED, **_DEEP, "representation_size": 768},
        "coatnet_2_224": {
            **_PREPARED,
            **_WIDE,
            **_DEEP,
            "stem_channels": [128, 128],
            "representation_size": 1024,
        },
        "coatnet_3_224": {
            **_PREPARED,
            **_WIDER,
            **_DEEP,
            "stem_channels": [192, 192],
            "representation_size": 1536,
        },
        "coatnet_4_224": {
            **_PREPARED,
            **_WIDER,
            **_DEEPER,
            "stem_channels": [192, 192],
            "representation_size": 1536,
        },
        "coatnet_5_224": {
            **_PREPARED,
            **_WIDEST,
            **_DEEPER,
            "stem_channels": [192, 192],
            "representation_size": 2048,
        },
        "coatnet_pico_rw_224": {**_RW, **_NANO},
        "coatnet_nano_rw_224": {**_RW, **_NANO, **_NANO_DEPTHS, "stride_mode": "pool", "crop_pct": 0.9},
        "coatnet_0_rw_224": {**_RW_EARLY, **_SMALL, **_SMALL_DEPTHS, "stride_mode": "pool"},
        "coatnet_1_rw_224": {**_RW_EARLY, **_SMALL, **_DEEP},
        "coatnet_2_rw_224": {**_RW_ACT, **_WIDE, **_DEEP, "stem_channels": [64, 128]},
        "coatnet_3_rw_224": {
            **_RW_ACT,
            **_WIDER,
            **_DEEP,
            "stem_channels": [96, 192],
            "layer_scale_init_value": 1e-6,
            "num_labels": 11821,  # of ImageNet-12k, that its only weights know
        },
        "coatnet_bn_0_rw_224": {
            **_RW_EARLY,
            **_SMALL,
            **_SMALL_DEPTHS,
            "norm_type": "batch",
            "image_mean": IMAGENET_MEAN,
            "image_std": IMAGENET_STD,
        },
        "coatnet_rmlp_nano_rw_224": {
            **_RW,
            **_RMLP,
            **_NANO,
            **_NANO_DEPTHS,
            "position_bias_size": 384,
            "crop_pct": 0.9,
        },
        "coatnet_rmlp_0_rw_224": {**_RW_ACT, **_RMLP, **_SMALL, **_SMALL_DEPTHS, "se_act": "relu"},
        "coatnet_rmlp_1_rw_224": {
            **_RW_EARLY,
            **_RMLP,
            **_SMALL,
            **_DEEP,
            "stride_mode": "pool",
            "pool_type": "max",
            "position_bias_size": 384,
        },
        "coatnet_rmlp_1_rw2_224": {**_RW_ACT, **_RMLP, **_SMALL, **_DEEP, "se_act": "relu"},
        "coatnet_rmlp_2_rw_224": _RMLP_2,
        "coatnet_rmlp_2_rw_384": {**_RMLP_2, "image_size": 384, "crop_pct": 1.0},
        "coatnet_rmlp_3_rw_224": {**_RMLP_2, **_WIDER, "stem_channels": [96, 192]},
        "coatnet_nano_cc_224": {
            **_RW_ACT,
            **_NANO,
            **_NANO_DEPTHS,
            "conv_depths": [3, 4, 1, 1],
            "stride_mode": "pool",
            "se_act": "relu",
        },
        "coatnext_nano_rw_224": {
            **_RW,
            **_NANO,
            **_NANO_DEPTHS,
            "conv_layer_type": "convnext",
            "conv_act": "gelu",
            "initialization": "normal",
            "crop_pct": 0.9,
        },
    }

    patch_size: int | list[int] | tuple[int, int] = 2
    stem_channels: list[int] | tuple[int, ...] = (64, 64)
    hidden_sizes: list[int] | tuple[int, ...] = (96, 192, 384, 768)
    depths: list[int] | tuple[int, ...] = (2, 3, 5, 2)
    conv_depths: list[int] | tuple[int, ...] = (2, 3, 0, 0)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    conv_layer_type: Literal["mbconv", "convnext"] = "mbconv"
    conv_act: str = "gelu"
    pre_norm_act: bool = False
    conv_expand_ratio: float | int = 4.0
    expand_output: bool = True
    conv_bias: bool = True
    stride_mode: Literal["dw", "1x1", "pool"] = "dw"
    pool_type: Literal["average", "max"] = "average"
    se_ratio: float | int = 0.25
    se_act: str = "silu"
    se_position: Literal["after_norm", "before_norm"] = "after_norm"
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu"
    expand_first: bool = True
    shortcut_bias: bool = True
    position_bias_type: Literal["table", "mlp"] = "table"
    position_bias_size: int = 512
    position_bias_dropout_prob: float | int = 0.125
    norm_type: Literal["layer", "batch"] = "layer"
    layer_scale_init_value: float | int | None = None
    representation_size: int | None = None
    initialization: Literal["vit_eff", "normal"] = "vit_eff"

    def __post_init__(self, **kwargs):
        self.stem_channels = list(self.stem_channels)
        super().__post_init__(**kwargs)

    @property
    def stage_channels(self) -> list[int]:
        return [self.stem_channels[-1], *self.hidden_sizes]

    @property
    def stage_strides(self) -> list[tuple[int, int]]:
        rows, columns = pair(self.patch_size)
        return [(rows * 2**stage, columns * 2**stage) for stage in range(len(self.depths) + 1)]

    @property
    def pooler_output_size(self) -> int:
        return self.representation_size or self.hidden_sizes[-1]

    def validate_geometry(self):
        name = type(self).__name__
        if len(self.stem_channels) != 2:
            raise ValueError(f"{name}: stem_channels={self.stem_channels}: the stem has two convolutions")
        if self.conv_layer_type == "convnext" and self.stride_mode == "1x1":
            raise ValueError(f"{name}: stride_mode='1x1': a ConvNeXt layer does not begin with a 1x1 convolution")
        if self.representation_size is not None and self.norm_type == "batch":
            raise ValueError(f"{name}: representation_size={self.representation_size} needs norm_type='layer'")
        stages = zip(
            self.stage_channels, self.hidden_sizes, self.num_heads, self.depths, self.conv_depths, strict=False
        )
        for narrow, wide, heads, depth, conv_depth in stages:
            if not 0 <= conv_depth <= depth:
                raise ValueError(f"{name}: conv_depths={self.conv_depths} must lie between 0 and depths={self.depths}")
            if self.conv_layer_type == "convnext" and conv_depth and wide % narrow:
                raise ValueError(
                    f"{name}: a ConvNeXt layer widens by whole factors, but hidden_sizes={self.hidden_sizes} follow "
                    f"{self.stem_channels[-1]} channels of the stem"
                )
            if conv_depth == depth:
                continue
            if heads < 1 or wide % heads:
                raise ValueError(
                    f"{name}: hidden_sizes={self.hidden_sizes} are no multiples of num_heads={self.num_heads}"
                )
            if conv_depth == 0 and not self.expand_first and narrow % (wide // heads):
                raise ValueError(
                    f"{name}: expand_first=False, but {narrow} channels are no multiple of the {wide // heads} of a "
                    f"head"
                )


__all__ = ["VitfCoatnetConfig"]

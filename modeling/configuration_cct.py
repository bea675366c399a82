"""Configuration of CCT, CVT and ViT-Lite (Hassani et al., "Escaping the Big Data Paradigm", arXiv 2104.05704)."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfConfig, check_divides

# SHI-Labs/Compact-Transformers@cd11f09 src/cct.py: cct_2 .. cct_14; the number is that of the layers.
_2 = {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "mlp_ratio": 1}
_4 = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 2, "mlp_ratio": 1}
_6 = {"num_hidden_layers": 6}
_7 = {"num_hidden_layers": 7}
_14 = {"num_hidden_layers": 14, "hidden_size": 384, "num_attention_heads": 6, "mlp_ratio": 3}
# kernel size x convolutions; stride = max(1, kernel // 2 - 1), padding = kernel // 2.
_3X1 = {"kernel_size": 3, "num_conv_layers": 1}
_3X2 = {"kernel_size": 3, "num_conv_layers": 2}
_7X2 = {"kernel_size": 7, "num_conv_layers": 2, "stride": 2, "padding": 3}
_CVT = {"num_conv_layers": 0, "kernel_size": 4, "stride": 4, "padding": 0}
_LITE = {**_CVT, "pooling": "cls"}
_SINE = {"position_embedding_type": "sine"}
_IMAGENET = {"image_size": 224, "num_labels": 1000, "crop_pct": 0.9}
# Channel statistics of the data sets, from the repository's configs/.
_CIFAR10 = {"num_labels": 10, "image_mean": (0.4914, 0.4822, 0.4465), "image_std": (0.247, 0.2435, 0.2616)}
_CIFAR100 = {"num_labels": 100, "image_mean": (0.5071, 0.4867, 0.4408), "image_std": (0.2675, 0.2565, 0.2761)}
_FLOWERS = {"num_labels": 102, "image_mean": (0.4353, 0.3773, 0.2872), "image_std": (0.2966, 0.2455, 0.2698)}


@strict
class VitfCctConfig(VitfConfig):
    r"""
    Compact Transformers for small data sets. Differ from ViT by a convolutional tokenizer (CCT), by pooling the
    sequence with learned weights in place of a class token (CCT, CVT), and by a second norm on the residual stream of
    each layer.

    Args:
        hidden_size (`int`, *optional*, defaults to 256): Width of a token, in channels.
        num_hidden_layers (`int`, *optional*, defaults to 7): Layers.
        num_attention_heads (`int`, *optional*, defaults to 4): Heads; must divide `hidden_size`.
        mlp_ratio (`float`, *optional*, defaults to 2): Width of the feed-forward layer over `hidden_size`.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation of the feed-forward layer.
        num_conv_layers (`int`, *optional*, defaults to 1):
            Blocks of convolution, ReLU and max-pooling in the tokenizer; 0 for plain patches (CVT, ViT-Lite).
        kernel_size, stride, padding (`int`, *optional*, defaults to 3, 1, 1):
            Of each convolution, in pixels. Plain patches: kernel and stride are the size of a patch, padding 0.
        pooling_kernel_size, pooling_stride, pooling_padding (`int`, *optional*, defaults to 3, 2, 1): Of the
        max-pooling. pooling (`str`, *optional*, defaults to `"sequence"`):
            What the head reads: `"sequence"`, a learned weighted mean of all tokens; `"cls"`, a class token (ViT-Lite).
        position_embedding_type (`str`, *optional*, defaults to `"learned"`):
            `"learned"`; `"sine"`, a fixed table over the flattened sequence; or `"none"`.

    The other fields are those of [`VitfConfig`].
    """

    model_type = "vitf_cct"

    PREPROCESSING: ClassVar[dict[str, Any]] = {**VitfConfig.PREPROCESSING, "crop_pct": 1.0}
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "cct_2_3x2_32": {**_2, **_3X2, **_CIFAR10},
        "cct_2_3x2_32_sine": {**_2, **_3X2, **_SINE, **_CIFAR10},
        "cct_4_3x2_32": {**_4, **_3X2, **_CIFAR10},
        "cct_4_3x2_32_sine": {**_4, **_3X2, **_SINE, **_CIFAR10},
        "cct_6_3x1_32": {**_6, **_3X1, **_CIFAR10},
        "cct_6_3x1_32_sine": {**_6, **_3X1, **_SINE, **_CIFAR10},
        "cct_6_3x2_32": {**_6, **_3X2, **_CIFAR10},
        "cct_6_3x2_32_sine": {**_6, **_3X2, **_SINE, **_CIFAR10},
        "cct_7_3x1_32": {**_7, **_3X1, **_CIFAR10},
        "cct_7_3x1_32_sine": {**_7, **_3X1, **_SINE, **_CIFAR10},
        "cct_7_3x1_32_c100": {**_7, **_3X1, **_CIFAR100},
        "cct_7_3x1_32_sine_c100": {**_7, **_3X1, **_SINE, **_CIFAR100},
        "cct_7_3x2_32": {**_7, **_3X2, **_CIFAR10},
        "cct_7_3x2_32_sine": {**_7, **_3X2, **_SINE, **_CIFAR10},
        "cct_7_7x2_224": {**_7, **_7X2, **_IMAGENET, **_FLOWERS},
        "cct_7_7x2_224_sine": {**_7, **_7X2, **_SINE, **_IMAGENET, **_FLOWERS},
        "cct_14_7x2_224": {**_14, **_7X2, **_IMAGENET},
        "cct_14_7x2_384": {**_14, **_7X2, **_IMAGENET, "image_size": 384},
        "cct_14_7x2_384_fl": {**_14, **_7X2, "image_size": 384, **_FLOWERS},
        "cvt_2_4_32": {**_2, **_CVT, **_CIFAR10},
        "cvt_2_4_32_sine": {**_2, **_CVT, **_SINE, **_CIFAR10},
        "cvt_4_4_32": {**_4, **_CVT, **_CIFAR10},
        "cvt_4_4_32_sine": {**_4, **_CVT, **_SINE, **_CIFAR10},
        "cvt_6_4_32": {**_6, **_CVT, **_CIFAR10},
        "cvt_6_4_32_sine": {**_6, **_CVT, **_SINE, **_CIFAR10},
        "cvt_7_4_32": {**_7, **_CVT, **_CIFAR10},
        "cvt_7_4_32_sine": {**_7, **_CVT, **_SINE, **_CIFAR10},
        "vit_2_4_32": {**_2, **_LITE, **_CIFAR10},
        "vit_2_4_32_sine": {**_2, **_LITE, **_SINE, **_CIFAR10},
        "vit_4_4_32": {**_4, **_LITE, **_CIFAR10},
        "vit_4_4_32_sine": {**_4, **_LITE, **_SINE, **_CIFAR10},
        "vit_6_4_32": {**_6, **_LITE, **_CIFAR10},
        "vit_6_4_32_sine": {**_6, **_LITE, **_SINE, **_CIFAR10},
        "vit_7_4_32": {**_7, **_LITE, **_CIFAR10},
        "vit_7_4_32_sine": {**_7, **_LITE, **_SINE, **_CIFAR10},
    }

    image_size: int | list[int] | tuple[int, int] = 32
    hidden_size: int = 256
    num_hidden_layers: int = 7
    num_attention_heads: int = 4
    mlp_ratio: float | int = 2.0
    hidden_act: str = "gelu"
    num_conv_layers: int = 1
    kernel_size: int = 3
    stride: int = 1
    padding: int = 1
    pooling_kernel_size: int = 3
    pooling_stride: int = 2
    pooling_padding: int = 1
    pooling: Literal["sequence", "cls"] = "sequence"
    position_embedding_type: Literal["learned", "sine", "none"] = "learned"
    # src/utils/transformers.py: the constructors' defaults, which every published model was trained with.
    attention_probs_dropout_prob: float | int = 0.1
    drop_path_rate: float | int = 0.1
    layer_norm_eps: float = 1e-5

    def validate_geometry(self):
        check_divides(self, "num_attention_heads", "hidden_size")

    @property
    def stage_strides(self) -> list[tuple[int, int]]:
        stride = self.stride
        if self.num_conv_layers:
            stride = (self.stride * self.pooling_stride) ** self.num_conv_layers
        return [(stride, stride)] * len(self.stage_names)

    @property
    def size_multiple(self) -> tuple[int, int]:
        return (1, 1) if self.num_conv_layers else self.stage_strides[0]


__all__ = ["VitfCctConfig"]

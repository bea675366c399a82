"""Configuration of CaiT (Touvron et al., "Going deeper with Image Transformers", arXiv 2103.17239)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfConfig, check_divides

# Table 3 of arXiv 2103.17239; initial layer scales from facebookresearch/deit@7e160fe cait_models.py.
_XXS = {"hidden_size": 192, "num_attention_heads": 4}
_XS = {"hidden_size": 288, "num_attention_heads": 6}
_S = {"hidden_size": 384, "num_attention_heads": 8}
_M = {"hidden_size": 768, "num_attention_heads": 16}
_24 = {"num_hidden_layers": 24}
_36 = {"num_hidden_layers": 36}
_48 = {"num_hidden_layers": 48}
_FINER = {"layer_scale_init_value": 1e-6}
_AT_384 = {"image_size": 384}


@strict
class VitfCaitConfig(VitfConfig):
    r"""
    A ViT that stays trainable when it gets deep. Differs from ViT by layer scale, by attention whose heads talk before
    and after the softmax (arXiv 2003.02436), and by a class token that only the last layers see: these gather the
    patches into it and leave the patches as they are.

    Args:
        patch_size (`int` or `(int, int)`, *optional*, defaults to 16): Height and width of a patch, in pixels.
        hidden_size (`int`, *optional*, defaults to 384): Width of a token, in channels.
        num_hidden_layers (`int`, *optional*, defaults to 24): Layers over the patches.
        num_class_attention_layers (`int`, *optional*, defaults to 2): Layers that follow, of the class token.
        num_attention_heads (`int`, *optional*, defaults to 8): Heads; must divide `hidden_size`.
        mlp_ratio (`float`, *optional*, defaults to 4.0): Width of the feed-forward layer over `hidden_size`.
        class_attention_mlp_ratio (`float`, *optional*, defaults to 4.0): The same in the layers of the class token.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.
        layer_scale_init_value (`float`, *optional*, defaults to 1e-5): Initial value of layer scale.

    The other fields are those of [`VitfConfig`]. `drop_path_rate` is the same in every layer over the patches; the
    layers of the class token drop no path.
    """

    model_type = "vitf_cait"

    PREPROCESSING: ClassVar[dict[str, Any]] = {**VitfConfig.PREPROCESSING, "crop_pct": 1.0}
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "cait_xxs24_224": {**_XXS, **_24},
        "cait_xxs24_384": {**_XXS, **_24, **_AT_384},
        "cait_xxs36_224": {**_XXS, **_36},
        "cait_xxs36_384": {**_XXS, **_36, **_AT_384},
        "cait_xs24_384": {**_XS, **_24, **_AT_384},
        "cait_s24_224": {**_S, **_24},
        "cait_s24_384": {**_S, **_24, **_AT_384},
        "cait_s36_384": {**_S, **_36, **_AT_384, **_FINER},
        "cait_m36_384": {**_M, **_36, **_AT_384, **_FINER},
        "cait_m48_448": {**_M, **_48, "image_size": 448, **_FINER},
    }

    patch_size: int | list[int] | tuple[int, int] = 16
    hidden_size: int = 384
    num_hidden_layers: int = 24
    num_class_attention_layers: int = 2
    num_attention_heads: int = 8
    mlp_ratio: float | int = 4.0
    class_attention_mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu"
    qkv_bias: bool = True
    layer_scale_init_value: float | int = 1e-5

    def validate_geometry(self):
        check_divides(self, "patch_size", "image_size")
        check_divides(self, "num_attention_heads", "hidden_size")


__all__ = ["VitfCaitConfig"]

"""Configuration of DeepViT (Zhou et al., "DeepViT: Towards Deeper Vision Transformer", arXiv 2103.11886)."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_vitf import HALF_MEAN, HALF_STD, VitfConfig, check_divides, pair

# zhoudaquan/dvit_repo@1ccb152 models/deep_vision_transformer.py: patches through convolutions, re-attention in the last
# layers.
_CONVOLUTIONAL = {"patch_embedding_type": "convolutional", "scale_adjustment": 0.5}
_S = {
    **_CONVOLUTIONAL,
    "hidden_size": 396,
    "num_hidden_layers": 16,
    "apply_transform": [False] * 11 + [True] * 5,
    "transform_scale": True,
}
_L = {
    **_CONVOLUTIONAL,
    "hidden_size": 420,
    "num_hidden_layers": 32,
    "apply_transform": [False] * 20 + [True] * 12,
}


@strict
class VitfDeepvitConfig(VitfConfig):
    r"""
    A ViT whose deep layers keep attending to different tokens. Differs from ViT by re-attention: after the softmax the
    heads' maps are mixed by a learned matrix and normalised over the batch.

    Args:
        patch_size (`int` or `(int, int)`, *optional*, defaults to 16): Height and width of a patch, in pixels.
        patch_embedding_type (`str`, *optional*, defaults to `"linear"`):
            `"linear"`, one projection of each patch; `"convolutional"`, two convolutions at half the resolution before
            it.
        hidden_size (`int`, *optional*, defaults to 384): Width of a token, in channels.
        num_hidden_layers (`int`, *optional*, defaults to 16): Layers.
        num_attention_heads (`int`, *optional*, defaults to 12): Heads; must divide `hidden_size`.
        mlp_ratio (`float`, *optional*, defaults to 3.0): Width of the feed-forward layer over `hidden_size`.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation of the feed-forward layer.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.
        apply_transform (`bool` or `list[bool]`, *optional*, defaults to `True`):
            Whether a layer re-attends, for all layers or for each; the others attend as in ViT.
        transform_scale (`bool`, *optional*, defaults to `False`):
            Whether re-attended maps are multiplied by `(hidden_size / num_attention_heads) ** -0.5`.
        scale_adjustment (`float`, *optional*, defaults to 1.0):
            The residual stream is multiplied by it before each branch, and what the branch adds is divided by it.

    The other fields are those of [`VitfConfig`].
    """

    model_type = "vitf_deepvit"

    PREPROCESSING: ClassVar[dict[str, Any]] = {
        "crop_pct": 0.9,
        "image_mean": HALF_MEAN,
        "image_std": HALF_STD,
        "resample": "bicubic",
    }
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "deepvit_patch16_224_re_attn_16b": {},
        "deepvit_patch16_224_re_attn_24b": {"num_hidden_layers": 24},
        "deepvit_patch16_224_re_attn_32b": {"num_hidden_layers": 32},
        "deepvit_s": {**_S},
        "deepvit_l": {**_L},
        "deepvit_l_384": {**_L, "image_size": 384, "crop_pct": 1.0},
    }

    patch_size: int | list[int] | tuple[int, int] = 16
    patch_embedding_type: Literal["linear", "convolutional"] = "linear"
    hidden_size: int = 384
    num_hidden_layers: int = 16
    num_attention_heads: int = 12
    mlp_ratio: float | int = 3.0
    hidden_act: str = "gelu"
    qkv_bias: bool = True
    apply_transform: bool | list[bool] = True
    transform_scale: bool = False
    scale_adjustment: float | int = 1.0

    def validate_geometry(self):
        check_divides(self, "patch_size", "image_size")
        check_divides(self, "num_attention_heads", "hidden_size")
        if len(self.transformed_layers) != self.num_hidden_layers:
            raise ValueError(
                f"VitfDeepvitConfig: apply_transform has {len(self.transformed_layers)} entries for "
                f"num_hidden_layers={self.num_hidden_layers}"
            )
        if self.scale_adjustment <= 0:
            raise ValueError(f"VitfDeepvitConfig: scale_adjustment={self.scale_adjustment} is not positive")
        if self.patch_embedding_type == "convolutional" and any(size % 2 for size in pair(self.patch_size)):
            raise ValueError(
                f"VitfDeepvitConfig: patch_embedding_type='convolutional' needs an even patch_size, "
                f"not {self.patch_size}"
            )

    @property
    def transformed_layers(self) -> list[bool]:
        """For each layer, whether it re-attends."""
        one_for_all = isinstance(self.apply_transform, bool)
        return [self.apply_transform] * self.num_hidden_layers if one_for_all else self.apply_transform


__all__ = ["VitfDeepvitConfig"]

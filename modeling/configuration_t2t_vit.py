"""Configuration of T2T-ViT (Yuan et al., "Tokens-to-Token ViT", arXiv 2101.11986)."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfConfig, check_divides

# Table 1 of arXiv 2101.11986; yitu-opensource/T2T-ViT@0f63dc9 models/t2t_vit.py. The number is that of the layers.
_NARROW = {"hidden_size": 256, "num_attention_heads": 4, "mlp_ratio": 2}
_14 = {"num_hidden_layers": 14, "hidden_size": 384, "num_attention_heads": 6}
_19 = {"num_hidden_layers": 19, "hidden_size": 448, "num_attention_heads": 7}
_24 = {"num_hidden_layers": 24, "hidden_size": 512, "num_attention_heads": 8}
_TRANSFORMER = {"tokens_type": "transformer", "token_dropout_prob": 0.0}


@strict
class VitfT2tVitConfig(VitfConfig):
    r"""
    ViT whose tokens are made step by step. Differs from ViT by its tokenizer: three times, overlapping windows of the
    map are unfolded into tokens, and attention mixes them before the next time (section 3.1 of the paper); fixed
    sinusoid positions; a deep and narrow encoder.

    Args:
        tokens_type (`str`, *optional*, defaults to `"performer"`):
            Attention inside the tokenizer: `"performer"`, random features of a softmax kernel, linear in the number of
            tokens; or `"transformer"`, softmax attention.
        token_dim (`int`, *optional*, defaults to 64): Width of a token inside the tokenizer, in channels.
        token_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout after attention and after the feed-forward layer inside the tokenizer.
        hidden_size (`int`, *optional*, defaults to 384): Width of a token in the encoder, in channels.
        num_hidden_layers (`int`, *optional*, defaults to 14): Layers of the encoder.
        num_attention_heads (`int`, *optional*, defaults to 6): Heads; must divide `hidden_size`.
        mlp_ratio (`float`, *optional*, defaults to 3.0): Width of the feed-forward layer over `hidden_size`.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation.
        qkv_bias (`bool`, *optional*, defaults to `False`): Whether queries, keys and values of the encoder have a bias.

    The other fields are those of [`VitfConfig`].
    """

    model_type = "vitf_t2t_vit"
    # Kernel, stride and padding of the windows that become a token, in cells of the map before it (models/t2t_vit.py).
    SOFT_SPLITS: ClassVar[tuple[tuple[int, int, int], ...]] = ((7, 4, 2), (3, 2, 1), (3, 2, 1))

    PREPROCESSING: ClassVar[dict[str, Any]] = {**VitfConfig.PREPROCESSING, "crop_pct": 0.9}
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "t2t_vit_7": {**_NARROW, "num_hidden_layers": 7},
        "t2t_vit_10": {**_NARROW, "num_hidden_layers": 10},
        "t2t_vit_12": {**_NARROW, "num_hidden_layers": 12},
        "t2t_vit_14": {**_14},
        "t2t_vit_14_384": {**_14, "image_size": 384},
        "t2t_vit_19": {**_19},
        "t2t_vit_24": {**_24},
        "t2t_vit_t_14": {**_14, **_TRANSFORMER},
        "t2t_vit_t_19": {**_19, **_TRANSFORMER},
        "t2t_vit_t_24": {**_24, **_TRANSFORMER},
        # For comparison (section 3.2 of the paper): a wide and shallow encoder.
        "t2t_vit_14_wide": {"num_hidden_layers": 4, "hidden_size": 768, "num_attention_heads": 12},
    }

    tokens_type: Literal["performer", "transformer"] = "performer"
    token_dim: int = 64
    # models/token_performer.py fixes 0.1; models/token_transformer.py has none.
    token_dropout_prob: float | int = 0.1
    hidden_size: int = 384
    num_hidden_layers: int = 14
    num_attention_heads: int = 6
    mlp_ratio: float | int = 3.0
    hidden_act: str = "gelu"
    qkv_bias: bool = False
    layer_norm_eps: float = 1e-5

    def validate_geometry(self):
        check_divides(self, "num_attention_heads", "hidden_size")
        if self.token_dim < 2:
            raise ValueError(f"VitfT2tVitConfig: token_dim={self.token_dim} must be at least 2")

    @property
    def stage_strides(self) -> list[tuple[int, int]]:
        return [(16, 16)] * len(self.stage_names)

    @property
    def size_multiple(self) -> tuple[int, int]:
        return (1, 1)  # each soft split pads its map

    def feature_map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        for kernel, stride, padding in self.SOFT_SPLITS:
            height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
        return [(height, width)] * len(self.stage_names)


__all__ = ["VitfT2tVitConfig"]

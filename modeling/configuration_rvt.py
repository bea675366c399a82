"""Configuration of RvT (vit-pytorch 1.26.11 vit_pytorch/rvt.py; rotary positions from RoFormer, arXiv 2104.09864)."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfConfig, check_divides


@strict
class VitfRvtConfig(VitfConfig):
    r"""
    Rotary Vision Transformer. Differs from ViT by axial rotary positions in place of a table, queries from a depth-wise
    separable convolution over the patch grid, and a gated feed-forward layer. It has no paper and no published weights.

    Args:
        patch_size (`int` or `(int, int)`, *optional*, defaults to 16): Height and width of a patch, in pixels.
        hidden_size (`int`, *optional*, defaults to 768): Width of a token, in channels.
        num_hidden_layers (`int`, *optional*, defaults to 12): Layers.
        num_attention_heads (`int`, *optional*, defaults to 12): Heads.
        head_dim (`int`, *optional*, defaults to 64): Channels of a head; 4 * (head_dim // 4) of them turn.
        mlp_ratio (`float`, *optional*, defaults to 4.0): Width of the feed-forward layer over `hidden_size`.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation, of the gate where the layer is gated.
        query_projection (`str`, *optional*, defaults to `"conv"`):
            `"conv"`, depth-wise 5x5 then 1x1 over the grid of patches; `"linear"`.
        mlp_type (`str`, *optional*, defaults to `"gated"`): `"gated"`, act(b) * a of two projections; `"plain"`.
        position_embedding_type (`str`, *optional*, defaults to `"rotary"`): `"rotary"` or `"none"`.

    The other fields are those of [`VitfConfig`].
    """

    model_type = "vitf_rvt"

    patch_size: int | list[int] | tuple[int, int] = 16
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    head_dim: int = 64
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu"
    query_projection: Literal["conv", "linear"] = "conv"
    mlp_type: Literal["gated", "plain"] = "gated"
    position_embedding_type: Literal["rotary", "none"] = "rotary"
    layer_norm_eps: float = 1e-5

    def validate_geometry(self):
        check_divides(self, "patch_size", "image_size")


__all__ = ["VitfRvtConfig"]

"""Configuration of ConViT (d'Ascoli et al., "ConViT: Improving Vision Transformers with Soft Convolutional Inductive
Biases", arXiv 2103.10697)."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfConfig, check_divides


@strict
class VitfConvitConfig(VitfConfig):
    r"""
    ViT that starts as a convolution and can unlearn it. Differs from ViT by gated positional self-attention in the
    first layers: each head weighs content against a learned relative position; the class token joins after these
    layers.

    Args:
        patch_size (`int` or `(int, int)`, *optional*, defaults to 16): Height and width of a patch, in pixels.
        hidden_size (`int`, *optional*, defaults to 768): Width of a token, in channels.
        num_hidden_layers (`int`, *optional*, defaults to 12): Layers.
        num_attention_heads (`int`, *optional*, defaults to 16):
            Heads; must divide `hidden_size`. A square number fills the kernel of the convolution that is started from.
        local_up_to_layer (`int`, *optional*, defaults to 10):
            Layers with gated positional attention, from the first; fewer than `num_hidden_layers`.
        locality_strength (`float`, *optional*, defaults to 1.0):
            How sharply a head starts out looking at its place in the kernel (alpha in section 3 of the paper).
        mlp_ratio (`float`, *optional*, defaults to 4.0): Width of the feed-forward layer over `hidden_size`.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation.
        qkv_bias (`bool`, *optional*, defaults to `False`): Whether queries, keys and values have a bias.
        position_embedding_type (`str`, *optional*, defaults to `"learned"`):
            What is added to the patches: a `"learned"` table, or `"none"`, so that only gated attention knows places.

    The other fields are those of [`VitfConfig`]. In gated layers `attention_probs_dropout_prob` acts on attention by
    content.
    """

    model_type = "vitf_convit"

    # Table 2 of arXiv 2103.10697; facebookresearch/convit@0a9340a models.py.
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "convit_tiny": {"hidden_size": 192, "num_attention_heads": 4},
        "convit_small": {"hidden_size": 432, "num_attention_heads": 9},
        "convit_base": {"hidden_size": 768, "num_attention_heads": 16},
    }

    patch_size: int | list[int] | tuple[int, int] = 16
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 16
    local_up_to_layer: int = 10
    locality_strength: float | int = 1.0
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu"
    qkv_bias: bool = False
    position_embedding_type: Literal["learned", "none"] = "learned"

    def validate_geometry(self):
        check_divides(self, "patch_size", "image_size")
        check_divides(self, "num_attention_heads", "hidden_size")
        if not 0 <= self.local_up_to_layer < self.num_hidden_layers:
            raise ValueError(
                f"VitfConvitConfig: local_up_to_layer={self.local_up_to_layer} must be from 0 to "
                f"num_hidden_layers - 1 = {self.num_hidden_layers - 1}"
            )


__all__ = ["VitfConvitConfig"]

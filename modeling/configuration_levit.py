"""Configuration of LeViT (Graham et al., "LeViT: a Vision Transformer in ConvNet's Clothing", arXiv 2104.01136)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_vitf import VitfPyramidConfig


@strict
class VitfLevitConfig(VitfPyramidConfig):
    r"""
    LeViT. Differs from ViT by a convolutional stem, stages between which attention itself shrinks the map, biases by
    relative offset in place of positions, and batch norms, which inference folds into the layers before them.

    Args:
        distilled (`bool`, *optional*, defaults to `True`):
            Whether there is a second classifier for a teacher's labels. Both read the mean of the last tokens.
        patch_size (`int`, *optional*, defaults to 16):
            Stride of the stem in pixels, a power of two: each of its convolutions halves the map and doubles the width.
        hidden_sizes (`list[int]`, *optional*, defaults to `[128, 256, 384]`): Channels of each stage.
        depths (`list[int]`, *optional*, defaults to `[4, 4, 4]`):
            Layers of each stage, not counting the one that shrinks the map before the second and third.
        num_heads (`list[int]`, *optional*, defaults to `[4, 8, 12]`):
            Heads of each stage. A layer that shrinks a map of C channels has `C // key_dim`.
        key_dim (`int`, *optional*, defaults to 16): Channels of a head's queries and keys.
        attention_ratio (`float`, *optional*, defaults to 2.0): Channels of a head's values over `key_dim`.
        shrinking_attention_ratio (`float`, *optional*, defaults to 4.0): The same in the layers that shrink the map.
        mlp_ratio (`float`, *optional*, defaults to 2.0): Width of the feed-forward layer over that of the stage.
        hidden_act (`str`, *optional*, defaults to `"hardswish"`): Activation.
        drop_path_rate (`float`, *optional*, defaults to 0.0): The same for all layers.
        fused (`bool`, *optional*, defaults to `False`):
            Whether batch norms are folded into the neighbouring layers. [`VitfLevitPreTrainedModel.fuse`] sets it; a
            new model with it is there to load the weights of a fused one.

    The other fields are those of [`VitfConfig`]; there is no LayerNorm for `layer_norm_eps`.
    """

    model_type = "vitf_levit"
    # Evaluation loops gather every output of a model: the mean of the heads is what they need.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cls_logits", "distillation_logits"]
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {"stages.*.layers.*": "free_full_weight"}

    # Table 2 of arXiv 2104.01136; facebookresearch/LeViT@3772b8e levit.py.
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "levit_128s": {"depths": [2, 3, 4], "num_heads": [4, 6, 8]},
        "levit_128": {},
        "levit_192": {"hidden_sizes": [192, 288, 384], "num_heads": [3, 5, 6], "key_dim": 32},
        "levit_256": {"hidden_sizes": [256, 384, 512], "num_heads": [4, 6, 8], "key_dim": 32},
        "levit_384": {
            "hidden_sizes": [384, 512, 768],
            "num_heads": [6, 9, 12],
            "key_dim": 32,
            "drop_path_rate": 0.1,
        },
    }

    distilled: bool = True
    patch_size: int = 16
    hidden_sizes: list[int] | tuple[int, ...] = (128, 256, 384)
    depths: list[int] | tuple[int, ...] = (4, 4, 4)
    num_heads: list[int] | tuple[int, ...] = (4, 8, 12)
    key_dim: int = 16
    attention_ratio: float | int = 2.0
    shrinking_attention_ratio: float | int = 4.0
    mlp_ratio: float | int = 2.0
    hidden_act: str = "hardswish"
    fused: bool = False

    def validate_geometry(self):
        if self.patch_size < 2 or self.patch_size & (self.patch_size - 1):
            raise ValueError(f"VitfLevitConfig: patch_size={self.patch_size} is not a power of two")
        if self.hidden_sizes[0] % (self.patch_size // 2):
            raise ValueError(
                f"VitfLevitConfig: hidden_sizes={self.hidden_sizes}: the stem needs the first to be a multiple of "
                f"patch_size / 2 = {self.patch_size // 2}"
            )
        if min(self.hidden_sizes) < self.key_dim:
            raise ValueError(
                f"VitfLevitConfig: hidden_sizes={self.hidden_sizes} must not be below key_dim={self.key_dim}"
            )


__all__ = ["VitfLevitConfig"]

"""
What timm's names of ViTs stand for: the arguments that timm 1.0.31 passes to `VisionTransformer` for each
(models/vision_transformer.py, vision_transformer_hybrid.py, deit.py). `tests/test_timm_names.py` compares them with
timm's own.
"""

import re
from typing import Any

# Width, layers, heads, and where they are not four times the width, channels of the feed-forward layer over it.
_SIZES: dict[str, tuple] = {
    "tiny": (192, 12, 3),
    "wee": (256, 14, 4, 5),
    "xsmall": (256, 10, 4),
    "little": (320, 14, 5, 5.6),
    "small": (384, 12, 6),
    "medium": (512, 12, 8),
    "mediumd": (512, 20, 8),
    "betwixt": (640, 12, 10),
    "base": (768, 12, 12),
    "base_plus": (896, 12, 14),
    "so150m": (896, 18, 14, 2.572),
    "so150m2": (832, 21, 13, 34 / 13),
    "large": (1024, 24, 16),
    "intern300m": (1024, 24, 16),
    "so400m": (1152, 27, 16, 3.7362),
    "huge": (1280, 32, 16),
    "giant": (1408, 40, 16, 48 / 11),
    "giant24": (1536, 40, 24),
    "giantopt": (1536, 40, 16),
    "gigantic": (1664, 48, 16, 64 / 13),
    "aimv2_large": (1024, 24, 8, 2.75),
    "aimv2_huge": (1536, 24, 12, 2.6667),
    "aimv2_1b": (2048, 24, 16, 2.75),
    "aimv2_3b": (3072, 24, 24, 2.6667),
    "test": (64, 6, 2, 3),
    "test2": (64, 8, 2, 3),
    "test3": (96, 9, 3, 2),
}
_EPS5 = {"norm_layer": "LayerNorm(eps=1e-5)"}
_CLIP = {"pre_norm": True, **_EPS5}
_MEAN = {"class_token": False, "global_pool": "avg"}
_GAP = {**_MEAN, "fc_norm": False}
_MAP = {"class_token": False, "global_pool": "map"}
_TANH = {"act_layer": "gelu_tanh"}
_REG = {"no_embed_class": True}
_SWIGLU = {"act_layer": "silu", "mlp_layer": "SwiGLUPacked", "mlp_ratio": 5.33334}
_AIMV2 = {
    **_GAP,
    "qkv_bias": False,
    "proj_bias": False,
    "act_layer": "silu",
    "mlp_layer": "SwiGLU",
    "norm_layer": "RmsNorm(eps=1e-5)",
    "embed_norm_layer": "RmsNorm(eps=1e-5)",
}
_RADIO = {"no_embed_class": True, "final_norm": False, "img_size": 512}

# Names to what they set besides size and patch; the first row that fits a whole name counts. `{size}`, `{patch}` and
# `{reg}` are read from the name; `size` in a row replaces the name's.
_ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("deit3_{size}_patch{patch}_{px}", {**_REG, "init_values": 1e-6}),
    ("deit_{size}_distilled_patch{patch}_{px}", {"distilled": True}),
    ("deit_{size}_patch{patch}_{px}", {}),
    ("vit_intern300m_patch14_448", {"init_values": 0.1, "final_norm": False}),
    ("vit_{size}_patch{patch}_{px}", {}),
    ("vit_{size}_patch{patch}_{px}_miil", {"qkv_bias": False}),
    ("vit_{size}_patch{patch}_rpn_{px}", {**_MEAN, "qkv_bias": False, "init_values": 1e-5, "block_fn": "ResPostBlock"}),
    ("flexivit_{size}", {**_REG, "patch_size": 16}),
    ("eva_large_patch{patch}_{px}", {"global_pool": "avg"}),
    (
        "beit3_{size}_patch{patch}_{px}",
        {"global_pool": "avg", **_EPS5, "scale_attn_norm": True, "scale_mlp_norm": True},
    ),
    ("{aimv2}_patch{patch}_{px}", _AIMV2),
    ("vit_{size}_patch{patch}_plus_clip_{px}", {**_CLIP, "size": "base_plus"}),
    ("vit_{size}_patch{patch}_clip_{px}", _CLIP),
    ("vit_{size}_patch{patch}_clip_quickgelu_{px}", {**_CLIP, "act_layer": "quick_gelu"}),
    # SigLIP 2 trained new sizes with the tanh form of GELU, and old ones without.
    ("vit_(?:base_patch32|giantopt_patch16|so400m_patch16)_siglip_gap_{px}", {**_GAP, **_TANH}),
    ("vit_(?:base_patch32|giantopt_patch16|so400m_patch16)_siglip_{px}", {**_MAP, **_TANH}),
    ("vit_large_patch16_siglip_gap_512", {**_GAP, **_TANH}),
    ("vit_large_patch16_siglip_512", {**_MAP, **_TANH}),
    ("vit_{size}_patch{patch}_siglip_gap_{px}", _GAP),
    ("vit_{size}_patch{patch}_siglip_{px}", _MAP),
    ("vit_medium_patch16_gap_{px}", {**_GAP, "qkv_bias": False, "init_values": 1e-6}),
    ("vit_{size}_patch{patch}_gap_{px}", _GAP),
    ("vit_giant_patch14_dinov2", {**_SWIGLU, "init_values": 1e-5, "size": "giant24"}),
    ("vit_{size}_patch{patch}_dinov2", {"init_values": 1e-5}),
    ("vit_giant_patch14_reg{reg}_dinov2", {**_SWIGLU, **_REG, "init_values": 1e-5, "size": "giant24"}),
    ("vit_{size}_patch{patch}_reg{reg}_dinov2", {**_REG, "init_values": 1e-5}),
    ("vit_giant_patch14_reg{reg}_tipsv2", {**_SWIGLU, **_REG, "init_values": 1.0, "size": "giant24"}),
    ("vit_{size}_patch{patch}_reg{reg}_tipsv2", {**_REG, "init_values": 1.0}),
    ("vit_so150m2_patch16_reg{reg}_gap_{px}", {**_MEAN, "qkv_bias": False, "init_values": 1e-5}),
    ("vit_so150m_patch16_reg{reg}_gap_{px}", _GAP),
    ("vit_{size}_patch{patch}_reg{reg}_gap_{px}", {**_MEAN, **_REG, "init_values": 1e-5}),
    ("vit_giant_patch16_radio_v3", {**_RADIO, "reg_tokens": 7, "size": "giant24"}),
    ("vit_huge_patch16_radio_v3", {**_RADIO, "reg_tokens": 7}),
    ("vit_{size}_patch16_radio_v3", {**_RADIO, "reg_tokens": 7, "init_values": 1e-5}),
    ("vit_{size}_patch16_radio_v4", {**_RADIO, "reg_tokens": 9}),
    ("vit_{size}_r50_s16_{px}", {"resnet": (3, 4, 9), "patch_size": 1}),
    ("vit_{size}_r50_s32_{px}", {"resnet": (3, 4, 6, 3), "patch_size": 1}),
    ("vit_{size}_r26_s32_{px}", {"resnet": (2, 2, 2, 2), "patch_size": 1}),
    ("vit_{size}_r_s16_p8_{px}", {"resnet": (), "patch_size": 8}),
    ("test_vit", {"patch_size": 16, "size": "test"}),
    ("test_vit2", {**_MEAN, "patch_size": 16, "reg_tokens": 1, "init_values": 1e-5, "size": "test2"}),
    (
        "test_vit3",
        {**_MAP, "patch_size": 16, "reg_tokens": 1, "pool_include_prefix": True, "init_values": 1e-5, "size": "test3"},
    ),
)

# What `VisionTransformer` takes where a name says nothing.
_DEFAULTS: dict[str, Any] = {
    "patch_size": 16,
    "mlp_ratio": 4.0,
    "global_pool": "token",
    "qkv_bias": True,
    "proj_bias": True,
    "scale_attn_norm": False,
    "scale_mlp_norm": False,
    "init_values": None,
    "class_token": True,
    "no_embed_class": False,
    "reg_tokens": 0,
    "pre_norm": False,
    "final_norm": True,
    "fc_norm": None,
    "pool_include_prefix": False,
    "embed_norm_layer": None,
    "norm_layer": "LayerNorm(eps=1e-6)",
    "act_layer": "gelu",
    "block_fn": "Block",
    "mlp_layer": "Mlp",
    "resnet": None,
}


_PIXELS = "(?:196|224|240|256|336|378|384|448|512|896)"


def _regex(row: str) -> re.Pattern[str]:
    sizes = "|".join(sorted(_SIZES, key=len, reverse=True))
    places = {
        "size": f"(?P<size>{sizes})",
        "aimv2": f"(?P<size>{sizes})",
        "patch": r"(?P<patch>\d+)",
        "reg": r"(?P<reg>\d+)",
    }
    return re.compile(re.sub(r"\{(\w+)\}", lambda m: places.get(m[1], _PIXELS), row))


_PATTERNS = [(_regex(row), arguments) for row, arguments in _ROWS]


def timm_vit_arguments(name: str) -> dict[str, Any] | None:
    """
    All arguments of `VisionTransformer` that decide what a timm model of this name computes; `None` for another name.
    Classes are named, `resnet` stands for the depths of a hybrid's ResNet, `distilled` for the class with a
    distillation token.
    """
    fitting = ((found, row) for pattern, row in _PATTERNS if (found := pattern.fullmatch(name)) is not None)
    found, row = next(fitting, (None, {}))
    if found is None:
        return None
    places = found.groupdict()
    arguments = {**_DEFAULTS, **row}
    size = arguments.pop("size", None) or places.get("size") or name.split("_")[1]
    arguments |= dict(zip(("embed_dim", "depth", "num_heads", "mlp_ratio"), _SIZES[size], strict=False))
    if "mlp_ratio" in row:
        arguments["mlp_ratio"] = row["mlp_ratio"]
    for place, argument in {"patch": "patch_size", "reg": "reg_tokens"}.items():
        if places.get(place):
            arguments[argument] = int(places[place])
        elif place == "patch" and (patch := re.search(r"_patch(\d+)", name)):
            arguments[argument] = int(patch[1])
    return arguments


# A name for each combination of what JSON cannot say; the plainest first.
_WRITTEN = (
    "vit_base_patch16_224",
    "deit3_base_patch16_224",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_clip_quickgelu_224",
    "vit_base_patch16_siglip_224",
    "vit_base_patch16_siglip_gap_224",
    "vit_base_patch14_dinov2",
    "vit_base_patch14_reg4_dinov2",
    "vit_giant_patch14_dinov2",
    "vit_giant_patch14_reg4_dinov2",
    "vit_medium_patch16_reg4_gap_256",
    "vit_base_patch16_radio_v3",
    "vit_intern300m_patch14_448",
    "vit_base_patch16_rpn_224",
    "beit3_base_patch16_224",
    "aimv2_large_patch14_224",
    "vit_base_r50_s16_224",
    "vit_large_r50_s32_224",
    "vit_small_r26_s32_224",
    "vit_tiny_r_s16_p8_224",
)


def timm_vit_names() -> tuple[str, ...]:
    """Names with which every combination of arguments can be written that JSON cannot say."""
    return _WRITTEN


# Names of timm's that ours differ from: pattern, our variant, and arguments in which it differs. timm's LeViTs without
# published weights (1.0.31 models/levit.py): widths, width of a query, heads and depths. Their activation is SiLU; the
# stem of those called s8 has a convolution less.
_LEVIT = {
    "384_s8": ([384, 512, 768], 32, [6, 9, 12], [4, 4, 4]),
    "512_s8": ([512, 640, 896], 64, [8, 10, 14], [4, 4, 4]),
    "512": ([512, 768, 1024], 64, [8, 12, 16], [4, 4, 4]),
    "256d": ([256, 384, 512], 32, [4, 6, 8], [4, 8, 6]),
    "512d": ([512, 640, 768], 64, [8, 10, 12], [4, 8, 6]),
}
_LEVIT_ARGUMENTS = ("embed_dim", "key_dim", "num_heads", "depth")
RENAMED: tuple[tuple[re.Pattern[str], str, dict[str, Any]], ...] = tuple(
    (re.compile(pattern), variant, arguments)
    for pattern, variant, arguments in (
        (r"(crossvit_\w+)_240", r"\1_224", {}),
        (r"(crossvit_\w+)_408", r"\1_384", {}),
        (r"(pit_\w+)_224", r"\1", {}),
        *(
            (
                f"levit{kind}_{name}",
                "levit_384",
                {
                    **dict(zip(_LEVIT_ARGUMENTS, values, strict=True)),
                    "act_layer": "silu",
                    **({"stem_type": "s8"} if name.endswith("s8") else {}),
                    **({"use_conv": True} if kind else {}),
                },
            )
            for name, values in _LEVIT.items()
            for kind in ("", "_conv")
        ),
        (r"levit_conv_(\w+)", r"levit_\1", {"use_conv": True}),
        (r"(swinv2_[a-z]+)_(window12_192)", r"\1_patch4_\2_22k", {}),
        (r"(swinv2_[a-z]+)_(window.*)", r"\1_patch4_\2", {}),
        (
            "swin_s3_tiny_224",
            "swin_tiny_patch4_window7_224",
            {"window_size": [7, 7, 14, 7], "depths": [2, 2, 6, 2]},
        ),
        (
            "swin_s3_small_224",
            "swin_small_patch4_window7_224",
            {"window_size": [14, 14, 14, 7], "depths": [2, 2, 18, 2]},
        ),
        (
            "swin_s3_base_224",
            "swin_small_patch4_window7_224",
            {"window_size": [7, 7, 14, 7], "depths": [2, 2, 30, 2]},
        ),
    )
)

# What else timm has that looks for images with tokens, and is another architecture: the beginning of its names, and its
# name.
OTHER_FAMILIES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), family)
    for pattern, family in (
        ("eva02_", "EVA-02"),
        ("eva_giant", "EVA"),
        ("beitv2_", "BEiT v2"),
        ("beit_", "BEiT"),
        (r"vit_\w+_dinov3", "DINOv3"),
        (r"vit_\w+_rope|vit_\w+_mixed_rope", "a ViT with rotary positions in timm's EVA"),
        (r"rope_(axial|mixed)_", "a ViT with rotary positions of naver-ai/rope-vit"),
        (r"vit_\w+_sapiens2", "Sapiens 2"),
        (r"vit_\w+_lingbot", "LingBot's image encoder"),
        ("vit_pe_", "the Perception Encoder"),
        (r"vit_relpos|vit_srelpos|vit_\w+_rpos", "a ViT with relative positions"),
        ("samvit_", "the image encoder of Segment Anything"),
        ("vitamin_", "ViTamin"),
        (r"vit_\w+_mci_", "MobileCLIP's hybrid ViT"),
        (r"vit_d\w+_reg\d+_gap_|vit_dp\w+", "a ViT with differential attention"),
        (r"vit_pwee_", "a ViT with parallel attention and feed-forward layers"),
        ("vit_.*_(18x2|36x1)_", "a ViT with parallel layers"),
        ("test_vit4", "a ViT with other layers"),
        ("naflexvit", "NaFlexViT"),
        ("maxvit_", "MaxViT"),
        ("maxxvit", "MaxxViT"),
        ("swinv2_cr_", "Swin V2 in timm's other form (cr)"),
        ("xcit_", "XCiT"),
        ("volo_", "VOLO"),
        ("tnt_", "TNT"),
        ("coat_", "CoaT"),
        ("davit_", "DaViT"),
        ("hiera|sam2_hiera", "Hiera"),
        ("focalnet", "FocalNet"),
        ("gcvit", "GC ViT"),
        ("tiny_vit", "TinyViT"),
        ("visformer", "Visformer"),
        ("jx_nest", "NesT under an old name"),
        ("efficientformer", "EfficientFormer"),
        ("fastvit|mobileclip", "FastViT"),
        ("efficientvit", "EfficientViT"),
        ("nextvit", "Next-ViT"),
        ("repvit", "RepViT"),
        ("mobilevit", "MobileViT"),
        ("sequencer2d", "Sequencer2D"),
        ("mixer|gmixer|gmlp|resmlp", "an MLP-Mixer"),
        (r"(qwen|gemma|deepseek)\w*", "the image encoder of a language model"),
        ("caformer|convformer|poolformer|metaformer", "MetaFormer"),
    )
)

# The same by a key that only they have, for files whose name says nothing: those that DINO's authors published of XCiT
# (timm 1.0.31 models/xcit.py, LPI).
OTHER_KEYS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(.*\.)?blocks\.\d+\.local_mp\.\w+\.weight"), "XCiT"),
)

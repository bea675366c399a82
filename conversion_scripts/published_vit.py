"""Published checkpoints of ViT and DeiT III."""

import re

from ..conversion import Published
from .convert_deit import FACEBOOK, FACEBOOK_LICENSE, FACEBOOK_README
from .timm_names import TIMM_EVAL

_GOOGLE = "https://storage.googleapis.com/vit_models"
_GOOGLE_LICENSE = {
    "license": "apache-2.0",
    "license_source": "no statement for the weights; the code is Apache-2.0, and timm's cards of them say apache-2.0",
}
_README_AUGREG = "README of google-research/vision_transformer, recommended AugReg checkpoints"
_README_ORIGINAL = "README of google-research/vision_transformer before 2021-06: a fine-tuning like this one, not an evaluation of this file"
_TRAINING = {
    "in21k": "ImageNet-21k",
    "in21k_ft_in1k": "ImageNet-21k, fine-tuned on ImageNet-1k",
    "in1k": "ImageNet-1k",
    "in22k_ft_in1k": "ImageNet-21k, fine-tuned on ImageNet-1k",
}
# Key, file, top-1, who measured it. arXiv 2010.11929 ("orig") and 2106.01548 ("sam").
_ORIGINAL = (
    ("vit_base_patch16_224_in21k_pre_logits.orig_in21k", "imagenet21k/ViT-B_16", None, ""),
    ("vit_base_patch32_224_in21k_pre_logits.orig_in21k", "imagenet21k/ViT-B_32", None, ""),
    ("vit_base_patch8_224_in21k_pre_logits.orig_in21k", "imagenet21k/ViT-B_8", None, ""),
    ("vit_large_patch16_224_in21k_pre_logits.orig_in21k", "imagenet21k/ViT-L_16", None, ""),
    ("vit_large_patch32_224_in21k_pre_logits.orig_in21k", "imagenet21k/ViT-L_32", None, ""),
    ("vit_huge_patch14_224_in21k_pre_logits.orig_in21k", "imagenet21k/ViT-H_14", None, ""),
    ("vit_base_patch16_384.orig_in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-B_16", 84.212, TIMM_EVAL),
    ("vit_base_patch16_224.orig_in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-B_16-224", 81.782, TIMM_EVAL),
    ("vit_base_patch32_384.orig_in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-B_32", 81.79, _README_ORIGINAL),
    ("vit_base_patch8_384.orig_in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-B_8", None, ""),
    ("vit_large_patch16_384.orig_in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-L_16", 85.07, _README_ORIGINAL),
    ("vit_large_patch16_224.orig_in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-L_16-224", None, ""),
    ("vit_large_patch32_384.orig_in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-L_32", 81.508, TIMM_EVAL),
    ("vit_base_patch16_224.sam_in1k", "sam/ViT-B_16", 80.246, TIMM_EVAL),
    ("vit_base_patch32_224.sam_in1k", "sam/ViT-B_32", 73.704, TIMM_EVAL),
    ("vit_large_patch16_224.sam_in1k", "sam/ViT-L_16", None, ""),
    ("vit_large_patch32_224.sam_in1k", "sam/ViT-L_32", None, ""),
    ("vit_small_patch16_224.sam_in1k", "sam/ViT-S_16", None, ""),
    ("vit_base_r50_s16_224_in21k_pre_logits.orig_in21k", "imagenet21k/R50+ViT-B_16", None, ""),
    ("vit_base_r26_s32_224_in21k_pre_logits.orig_in21k", "imagenet21k/R26+ViT-B_32", None, ""),
    ("vit_large_r50_s32_224_in21k_pre_logits.orig_in21k", "imagenet21k/R50+ViT-L_32", None, ""),
    ("vit_base_r50_s16_384.orig_in21k_ft_in1k", "imagenet21k+imagenet2012/R50+ViT-B_16", 84.988, TIMM_EVAL),
)
# Key, model, data, augmentation, weight decay, dropout and stochastic depth, fine-tuning (learning rate, size), top-1, who
# measured it. arXiv 2106.10270; where the README of the repository and timm chose different runs, both are here.
_AUGREG = (
    ("vit_large_patch16_224_in21k.augreg_in21k", "L_16", "i21k", "strong1", 0.1, 0.0, None, None, ""),
    (
        "vit_large_patch16_384.augreg_readme_in21k_ft_in1k",
        "L_16",
        "i21k",
        "strong1",
        0.1,
        0.0,
        (0.01, 384),
        85.59,
        _README_AUGREG,
    ),
    ("vit_base_patch16_224_in21k.augreg_in21k", "B_16", "i21k", "medium1", 0.1, 0.0, None, None, ""),
    (
        "vit_base_patch16_384.augreg_readme_in21k_ft_in1k",
        "B_16",
        "i21k",
        "medium1",
        0.1,
        0.0,
        (0.03, 384),
        85.49,
        _README_AUGREG,
    ),
    ("vit_small_patch16_224_in21k.augreg_in21k", "S_16", "i21k", "light1", 0.03, 0.0, None, None, ""),
    ("vit_small_patch16_384.augreg_in21k_ft_in1k", "S_16", "i21k", "light1", 0.03, 0.0, (0.03, 384), 83.814, TIMM_EVAL),
    ("vit_tiny_patch16_224_in21k.augreg_in21k", "Ti_16", "i21k", "none", 0.03, 0.0, None, None, ""),
    ("vit_tiny_patch16_384.augreg_in21k_ft_in1k", "Ti_16", "i21k", "none", 0.03, 0.0, (0.03, 384), 78.438, TIMM_EVAL),
    ("vit_base_patch32_224_in21k.augreg_in21k", "B_32", "i21k", "light1", 0.1, 0.0, None, None, ""),
    (
        "vit_base_patch32_384.augreg_readme_in21k_ft_in1k",
        "B_32",
        "i21k",
        "light1",
        0.1,
        0.0,
        (0.01, 384),
        83.59,
        _README_AUGREG,
    ),
    ("vit_small_patch32_224_in21k.augreg_in21k", "S_32", "i21k", "none", 0.1, 0.0, None, None, ""),
    (
        "vit_small_patch32_384.augreg_readme_in21k_ft_in1k",
        "S_32",
        "i21k",
        "none",
        0.1,
        0.0,
        (0.01, 384),
        79.58,
        _README_AUGREG,
    ),
    ("vit_base_patch8_224.augreg_medium2_in21k_ft_in1k", "B_8", "i21k", "medium2", 0.1, 0.0, (0.03, 224), None, ""),
    ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "Ti_16", "i21k", "none", 0.03, 0.0, (0.03, 224), 75.452, TIMM_EVAL),
    ("vit_small_patch32_224.augreg_in21k_ft_in1k", "S_32", "i21k", "light1", 0.03, 0.0, (0.03, 224), 76.01, TIMM_EVAL),
    ("vit_small_patch32_384.augreg_in21k_ft_in1k", "S_32", "i21k", "light1", 0.03, 0.0, (0.03, 384), 80.476, TIMM_EVAL),
    ("vit_small_patch16_224.augreg_in21k_ft_in1k", "S_16", "i21k", "light1", 0.03, 0.0, (0.03, 224), 81.402, TIMM_EVAL),
    ("vit_small_patch16_224.augreg_in1k", "S_16", "i1k", "medium2", 0.1, 0.0, (0.01, 224), 78.842, TIMM_EVAL),
    ("vit_small_patch16_384.augreg_in1k", "S_16", "i1k", "medium2", 0.1, 0.0, (0.01, 384), 81.13, TIMM_EVAL),
    ("vit_base_patch32_224.augreg_in21k_ft_in1k", "B_32", "i21k", "medium1", 0.03, 0.0, (0.03, 224), 80.732, TIMM_EVAL),
    ("vit_base_patch32_384.augreg_in21k_ft_in1k", "B_32", "i21k", "light1", 0.1, 0.0, (0.03, 384), 83.358, TIMM_EVAL),
    ("vit_base_patch32_224.augreg_in1k", "B_32", "i1k", "medium2", 0.1, 0.1, (0.01, 224), 74.908, TIMM_EVAL),
    ("vit_base_patch32_384.augreg_in1k", "B_32", "i1k", "medium2", 0.1, 0.1, (0.01, 384), 78.75, TIMM_EVAL),
    ("vit_base_patch16_224.augreg_in21k_ft_in1k", "B_16", "i21k", "medium1", 0.1, 0.0, (0.01, 224), 84.534, TIMM_EVAL),
    ("vit_base_patch16_384.augreg_in21k_ft_in1k", "B_16", "i21k", "medium1", 0.1, 0.0, (0.01, 384), 86.01, TIMM_EVAL),
    ("vit_base_patch16_224.augreg_in1k", "B_16", "i1k", "strong2", 0.1, 0.1, (0.01, 224), 79.154, TIMM_EVAL),
    ("vit_base_patch16_384.augreg_in1k", "B_16", "i1k", "strong2", 0.1, 0.1, (0.01, 384), 81.102, TIMM_EVAL),
    ("vit_base_patch8_224.augreg_in21k_ft_in1k", "B_8", "i21k", "medium1", 0.1, 0.0, (0.01, 224), 85.838, TIMM_EVAL),
    ("vit_large_patch16_224.augreg_in21k_ft_in1k", "L_16", "i21k", "medium1", 0.1, 0.1, (0.01, 224), 85.856, TIMM_EVAL),
    ("vit_large_patch16_384.augreg_in21k_ft_in1k", "L_16", "i21k", "medium1", 0.1, 0.1, (0.01, 384), 87.096, TIMM_EVAL),
    ("vit_large_r50_s32_224_in21k.augreg_in21k", "R50_L_32", "i21k", "medium1", 0.1, 0.1, None, None, ""),
    (
        "vit_large_r50_s32_384.augreg_readme_in21k_ft_in1k",
        "R50_L_32",
        "i21k",
        "medium1",
        0.1,
        0.1,
        (0.01, 384),
        85.99,
        _README_AUGREG,
    ),
    ("vit_small_r26_s32_224_in21k.augreg_in21k", "R26_S_32", "i21k", "light1", 0.1, 0.0, None, None, ""),
    (
        "vit_small_r26_s32_384.augreg_readme_in21k_ft_in1k",
        "R26_S_32",
        "i21k",
        "light1",
        0.1,
        0.0,
        (0.01, 384),
        83.85,
        _README_AUGREG,
    ),
    ("vit_tiny_r_s16_p8_224_in21k.augreg_in21k", "R_Ti_16", "i21k", "none", 0.03, 0.0, None, None, ""),
    (
        "vit_tiny_r_s16_p8_384.augreg_in21k_ft_in1k",
        "R_Ti_16",
        "i21k",
        "none",
        0.03,
        0.0,
        (0.03, 384),
        75.962,
        TIMM_EVAL,
    ),
    ("vit_tiny_r_s16_p8_224.augreg_in21k_ft_in1k", "R_Ti_16", "i21k", "none", 0.03, 0.0, (0.03, 224), 71.8, TIMM_EVAL),
    (
        "vit_small_r26_s32_224.augreg_in21k_ft_in1k",
        "R26_S_32",
        "i21k",
        "light0",
        0.03,
        0.1,
        (0.03, 224),
        81.856,
        TIMM_EVAL,
    ),
    (
        "vit_small_r26_s32_384.augreg_in21k_ft_in1k",
        "R26_S_32",
        "i21k",
        "medium2",
        0.03,
        0.0,
        (0.03, 384),
        84.066,
        TIMM_EVAL,
    ),
    (
        "vit_large_r50_s32_224.augreg_in21k_ft_in1k",
        "R50_L_32",
        "i21k",
        "medium1",
        0.1,
        0.1,
        (0.01, 224),
        84.434,
        TIMM_EVAL,
    ),
    (
        "vit_large_r50_s32_384.augreg_in21k_ft_in1k",
        "R50_L_32",
        "i21k",
        "medium2",
        0.1,
        0.0,
        (0.01, 384),
        86.188,
        TIMM_EVAL,
    ),
)
# Key, file, top-1 of the repository's README (README_revenge.md of facebookresearch/deit@7e160fe). arXiv 2204.07118.
_DEIT3_FILES = (
    ("deit3_small_patch16_224.fb_in1k", "deit_3_small_224_1k", 81.4),
    ("deit3_small_patch16_384.fb_in1k", "deit_3_small_384_1k", 83.4),
    ("deit3_medium_patch16_224.fb_in1k", "deit_3_medium_224_1k", 83.0),
    ("deit3_base_patch16_224.fb_in1k", "deit_3_base_224_1k", 83.8),
    ("deit3_base_patch16_384.fb_in1k", "deit_3_base_384_1k", 85.0),
    ("deit3_large_patch16_224.fb_in1k", "deit_3_large_224_1k", 84.9),
    ("deit3_large_patch16_384.fb_in1k", "deit_3_large_384_1k", 85.8),
    ("deit3_huge_patch14_224.fb_in1k", "deit_3_huge_224_1k", 85.2),
    ("deit3_small_patch16_224.fb_in22k_ft_in1k", "deit_3_small_224_21k", 83.1),
    ("deit3_small_patch16_384.fb_in22k_ft_in1k", "deit_3_small_384_21k", 84.8),
    ("deit3_medium_patch16_224.fb_in22k_ft_in1k", "deit_3_medium_224_21k", 84.5),
    ("deit3_base_patch16_224.fb_in22k_ft_in1k", "deit_3_base_224_21k", 85.7),
    ("deit3_base_patch16_384.fb_in22k_ft_in1k", "deit_3_base_384_21k", 86.7),
    ("deit3_large_patch16_224.fb_in22k_ft_in1k", "deit_3_large_224_21k", 87.0),
    ("deit3_large_patch16_384.fb_in22k_ft_in1k", "deit_3_large_384_21k", 87.7),
    ("deit3_huge_patch14_224.fb_in22k_ft_in1k", "deit_3_huge_224_21k_v1", 87.2),
)


def _training(key: str) -> str:
    """What the end of the tag says about the data."""
    return _TRAINING[re.search(r"(in2[12]k_ft_in1k|in21k|in1k)$", key)[1]]


def _augreg_file(model, data, augmentation, weight_decay, dropout, fine_tuning) -> str:
    run = f"{model}-{data}-300ep-lr_0.001-aug_{augmentation}-wd_{weight_decay}-do_{dropout}-sd_{dropout}"
    return run if fine_tuning is None else f"{run}--imagenet2012-steps_20k-lr_{fine_tuning[0]}-res_{fine_tuning[1]}"


CHECKPOINTS: dict[str, Published] = {
    **{
        key: Published(f"{_GOOGLE}/{file}.npz", top1, source, _training(key), **_GOOGLE_LICENSE)
        for key, file, top1, source in _ORIGINAL
    },
    **{
        key: Published(f"{_GOOGLE}/augreg/{_augreg_file(*run)}.npz", top1, source, _training(key), **_GOOGLE_LICENSE)
        for key, *run, top1, source in _AUGREG
    },
    **{
        key: Published(
            f"{FACEBOOK}/{file}.pth", top1, FACEBOOK_README, _training(key), wrapper="model", **FACEBOOK_LICENSE
        )
        for key, file, top1 in _DEIT3_FILES
    },
}

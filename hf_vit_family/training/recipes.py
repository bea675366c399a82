"""
Shipped recipes, as data: what `vit-family train --recipe NAME` runs, how long it takes, and what came out.

Sources: CCT, section 4 of arXiv 2104.05704 and SHI-Labs/Compact-Transformers@cd11f09 configs/; DeiT, table 9 of arXiv
2012.12877; fine-tuning, table 4 of arXiv 2010.11929 with the AdamW of arXiv 2106.08254; TimeSformer,
facebookresearch/TimeSformer@a5ef29a configs/Kinetics/, where the learning rate falls in steps instead; SimMIM, appendix
A of arXiv 2111.09886 and microsoft/SimMIM@d3e29bc configs/swin_base__100ep/, whose rates are for 512 images, with a
batch of 2,048; MAE, table 8 of arXiv 2111.06377 and facebookresearch/mae@efb2a80 PRETRAIN.md, whose rates are for 256
images, with a batch of 4,096; MoCo v3, section 5 of arXiv 2104.02057 and facebookresearch/moco-v3@c349e6e README.md,
whose rate of 1.5e-4 is for 256 images; MoCo v2, arXiv 2003.04297 and facebookresearch/moco@2eeee76 main_moco.py; SimCLR
on CIFAR-10, google-research/simclr@383d414 README.md.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from ..modeling.configuration_vitf import unknown_name_message


@dataclass(frozen=True)
class Recipe:
    """
    Options of a run that belong together.

    Args:
        name: What `--recipe` calls it.
        purpose: One sentence.
        options: Options of `vit-family train` that differ from the defaults.
        expected_time: How long it takes on what.
        measured: What came out, on what and when; None where nobody has run it to the end.
    """

    name: str
    purpose: str
    options: dict[str, Any]
    expected_time: str
    measured: str | None = None

    @property
    def command(self) -> str:
        """The command that runs it."""
        return f"vit-family train --recipe {self.name} --output {self.name}"


_CIFAR10 = {
    "dataset": "uoft-cs/cifar10",
    "crop": "random",
    "batch_size": 128,
    "lr": 5.5e-4,
    "min_lr": 1e-5,
    "weight_decay": 0.06,
    "warmup_epochs": 10,
    "label_smoothing": 0.1,
    "auto_augment": "randaugment",
    "random_erasing": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
}

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "digits",
            "A small CCT on the 1,797 handwritten digits that scikit-learn ships.",
            {
                "model": "cct_2_3x2_32",
                "dataset": "digits",
                "image_size": 16,
                "crop": "random",
                "crop_padding": 2,
                "horizontal_flip": 0.0,
                "auto_augment": "trivialaugment",
                "num_workers": 0,
                "epochs": 80,
                "batch_size": 64,
                "lr": 2e-3,
                "warmup_epochs": 3,
                "ema_decay": 0.99,
                "eval_epochs": 10,
            },
            "2 to 3 minutes on 2 CPU cores",
            "98.33% of the 359 held-out images",
        ),
        Recipe(
            "mnist_vit",
            "A small ViT on MNIST from random weights.",
            {
                "model": "vit_tiny_patch16_224",
                "set": {
                    "patch_size": 4,
                    "hidden_size": 128,
                    "num_hidden_layers": 6,
                    "num_attention_heads": 4,
                    "mlp_ratio": 2,
                },
                "dataset": "ylecun/mnist",
                "image_size": 28,
                "crop": "random",
                "crop_padding": 2,
                "horizontal_flip": 0.0,
                "epochs": 12,
                "batch_size": 128,
                "lr": 1e-3,
                "min_lr": 1e-5,
                "warmup_epochs": 1,
                "clip_grad_norm": 1.0,
                "ema_decay": 0.999,
            },
            "67 minutes on one busy CPU core",
            "99.09% of the 10,000 test images",
        ),
        Recipe(
            "mnist_cct",
            "CCT-2/3x2 on MNIST from random weights.",
            {
                "model": "cct_2_3x2_32",
                "set": {"attention_probs_dropout_prob": 0.0},
                "drop_path_rate": 0.0,
                "dataset": "ylecun/mnist",
                "image_size": 28,
                "crop": "random",
                "crop_padding": 2,
                "horizontal_flip": 0.0,
                "num_workers": 0,
                "epochs": 6,
                "batch_size": 128,
                "lr": 2e-3,
                "min_lr": 1e-5,
                "warmup_epochs": 0.5,
                "ema_decay": 0.998,
            },
            "21 minutes on one busy CPU core",
            "99.40% of the 10,000 test images",
        ),
        Recipe(
            "cifar10_cct_2",
            "CCT-2/3x2 on CIFAR-10 within an hour of one CPU core: light augmentation, few epochs.",
            {
                **_CIFAR10,
                "model": "cct_2_3x2_32",
                "set": {"attention_probs_dropout_prob": 0.0},
                "drop_path_rate": 0.0,
                "epochs": 20,
                "lr": 1.5e-3,
                "warmup_epochs": 2,
                "auto_augment": "none",
                "random_erasing": 0.0,
                "mixup": 0.0,
                "cutmix": 0.0,
                "ema_decay": 0.999,
                "mixed_precision": "bf16",
                "num_workers": 0,
                "eval_epochs": 2,
            },
            "an hour on one CPU core",
            "81.33% of the 10,000 test images (a copy of CIFAR-10 stored as JPEG)",
        ),
        Recipe(
            "cifar10_short",
            "Two epochs of CIFAR-10 for a small model of any architecture (give --model and --set): does it learn?",
            {
                **_CIFAR10,
                "model": "vit_tiny_patch16_224",
                "image_size": 32,
                "drop_path_rate": 0.0,
                "epochs": 2,
                "lr": 1e-3,
                "weight_decay": 0.05,
                "warmup_epochs": 0.2,
                "clip_grad_norm": 1.0,
                "label_smoothing": 0.0,
                "auto_augment": "none",
                "random_erasing": 0.0,
                "mixup": 0.0,
                "cutmix": 0.0,
                "num_workers": 0,
                "eval_epochs": 2,
            },
            "5 minutes on one CPU core",
        ),
        Recipe(
            "cifar10_cct_7",
            "CCT-7/3x1 on CIFAR-10 with the paper's recipe, 300 epochs.",
            {**_CIFAR10, "model": "cct_7_3x1_32", "epochs": 300, "mixed_precision": "bf16", "num_workers": 8},
            "2 to 3 hours on one data-centre GPU",
        ),
        Recipe(
            "finetune_imagenet",
            "Fine-tunes a ViT-B/16 of ImageNet-21k, a folder that vit-family convert made, on ImageNet-1k.",
            {
                "model": "./vit_base_patch16_224_in21k",
                "reset_head": True,
                "dataset": "ILSVRC/imagenet-1k",
                "epochs": 30,
                "batch_size": 128,
                "gradient_accumulation_steps": 8,
                "lr": 1e-3,
                "min_lr": 1e-6,
                "warmup_epochs": 3,
                "layer_decay": 0.75,
                "drop_path_rate": 0.1,
                "label_smoothing": 0.1,
                "auto_augment": "randaugment",
                "random_erasing": 0.25,
                "mixup": 0.8,
                "cutmix": 1.0,
                "clip_grad_norm": 1.0,
                "mixed_precision": "bf16",
                "num_workers": 12,
            },
            "about 1 day on 8 data-centre GPUs",
        ),
        Recipe(
            "moving_digits_timesformer",
            "A small TimeSformer on digits that move; attention_type=space_only, which cannot tell their directions, "
            "compares.",
            {
                "model": "timesformer_base_k400",
                "set": {
                    "patch_size": 8,
                    "hidden_size": 64,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "mlp_ratio": 2,
                    # Positions and times that count from the start: from 0.02 the model stays at chance for much
                    # longer.
                    "initializer_range": 0.1,
                },
                "drop_path_rate": 0.0,
                "dataset": "moving_digits",
                "image_size": 32,
                "num_frames": 8,
                "crop": "center",
                "horizontal_flip": 0.0,
                "num_workers": 0,
                "epochs": 8,
                "batch_size": 32,
                "lr": 1e-3,
                "warmup_epochs": 0.3,
                "clip_grad_norm": 1.0,
            },
            "6 minutes on one busy CPU core",
            "100.0% of the 1,436 held-out clips; with space-only attention 26.1%, where chance is 25%",
        ),
        Recipe(
            "finetune_kinetics",
            "Trains TimeSformer-B on a folder of Kinetics-400 from a folder that from_image_model made of a ViT; 8 "
            "processes.",
            {
                "model": "./timesformer_base_from_vit",
                "reset_head": True,
                "dataset": "./kinetics400",
                "crop_min_scale": 0.5,
                "epochs": 15,
                "batch_size": 2,
                "optimizer": "SGD",
                "optimizer_options": {"momentum": 0.9, "nesterov": True},
                "lr": 5e-3,
                "weight_decay": 1e-4,
                "mixed_precision": "bf16",
                "num_processes": 8,
                "num_workers": 12,
            },
            "several days on 8 data-centre GPUs",
        ),
        Recipe(
            "simmim_pretrain",
            "Pretrains Swin-B on ImageNet-1k without labels by SimMIM; for the paper's batch of 2,048 on 8 processes.",
            {
                "objective": "simmim",
                "mask_patch_size": 32,
                "mask_ratio": 0.6,
                "model": "swin_base_patch4_window7_224",
                "set": {"window_size": 6},
                "drop_path_rate": 0.0,
                "dataset": "ILSVRC/imagenet-1k",
                "image_size": 192,
                "crop_min_scale": 0.67,
                "epochs": 100,
                "batch_size": 128,
                "gradient_accumulation_steps": 2,
                "lr": 8e-4,
                "min_lr": 4e-5,
                "warmup_epochs": 10,
                "weight_decay": 0.05,
                "clip_grad_norm": 5.0,
                "mixed_precision": "bf16",
                "num_processes": 8,
                "num_workers": 12,
            },
            "several days on 8 data-centre GPUs",
        ),
        Recipe(
            "dino_pretrain",
            "Pretrains ViT-S/16 on ImageNet-1k without labels by DINO; for the authors' batch of 512 on 8 processes.",
            {
                "objective": "dino",
                "model": "deit_small_patch16_224",
                "drop_path_rate": 0.1,
                "dataset": "ILSVRC/imagenet-1k",
                "local_crops": 8,
                "local_crop_size": 96,
                "epochs": 100,
                "batch_size": 64,
                "lr": 1e-3,
                "min_lr": 1e-6,
                "schedule": "open_cosine",
                "warmup_epochs": 10,
                "weight_decay": 0.04,
                "weight_decay_end": 0.4,
                "clip_grad_norm": 3.0,
                "clip_grad_by": "parameter",
                "mixed_precision": "bf16",
                "num_processes": 8,
                "num_workers": 10,
            },
            "about 2 days on 8 data-centre GPUs",
        ),
        Recipe(
            "cifar10_dino",
            "A small CCT on CIFAR-10 without labels by DINO, within an hour of one CPU core.",
            {
                "objective": "dino",
                "model": "cct_2_3x2_32",
                "set": {"attention_probs_dropout_prob": 0.0},
                "drop_path_rate": 0.0,
                "dataset": "uoft-cs/cifar10",
                "local_crops": 2,
                "local_crop_size": 16,
                "local_crop_scale": [0.1, 0.4],
                "blur_sigma": 0.0,
                "out_dim": 1024,
                "head_hidden_size": 512,
                "head_bottleneck_size": 128,
                "head_batch_norm": True,
                "freeze_last_layer_epochs": 0,
                "teacher_momentum": 0.98,
                "epochs": 3,
                "batch_size": 64,
                "lr": 1e-3,
                "min_lr": 1e-5,
                "warmup_steps": 40,
                "weight_decay": 0.04,
                "weight_decay_end": 0.1,
                "clip_grad_norm": 3.0,
                "clip_grad_by": "parameter",
                "num_workers": 0,
            },
            "an hour on one CPU core",
        ),
        Recipe(
            "mae_pretrain",
            "Pretrains ViT-B on ImageNet-1k without labels by MAE; for the paper's batch of 4,096 on 8 processes.",
            {
                "objective": "mae",
                "mask_ratio": 0.75,
                "model": "vit_base_patch16_224",
                "set": {"hidden_act": "gelu", "norm_pix_loss": True},
                "drop_path_rate": 0.0,
                "dataset": "ILSVRC/imagenet-1k",
                "crop_min_scale": 0.2,
                "epochs": 800,
                "batch_size": 64,
                "gradient_accumulation_steps": 8,
                "optimizer_options": {"betas": [0.9, 0.95]},
                "lr": 2.4e-3,
                "warmup_epochs": 40,
                "weight_decay": 0.05,
                "mixed_precision": "bf16",
                "num_processes": 8,
                "num_workers": 12,
            },
            "about a week on 8 data-centre GPUs",
        ),
        Recipe(
            "simclr_cifar10",
            "Pretrains a small ViT on CIFAR-10 by SimCLR: temperature, colours and no blur as published for CIFAR-10; "
            "AdamW in place of LARS.",
            {
                "objective": "simclr",
                "contrast_temperature": 0.5,
                "jitter_strength": 0.5,
                "blur_sigma": 0.0,
                "model": "vit_tiny_patch16_224",
                "set": {
                    "patch_size": 4,
                    "hidden_size": 64,
                    "num_hidden_layers": 4,
                    "num_attention_heads": 4,
                    "mlp_ratio": 2,
                },
                "drop_path_rate": 0.0,
                "dataset": "uoft-cs/cifar10",
                "image_size": 32,
                "epochs": 20,
                "batch_size": 256,
                "lr": 2e-3,
                "warmup_epochs": 1,
                "eval_epochs": 5,
                "num_workers": 0,
            },
            "2 hours on one CPU core",
        ),
        Recipe(
            "moco_v2_pretrain",
            "Pretrains ViT-S/16 on ImageNet-1k by MoCo v2 with the values published for ResNet-50; 8 processes.",
            {
                "objective": "moco",
                "contrast_temperature": 0.2,
                "queue_size": 65536,
                "teacher_momentum": 0.999,
                "model": "vit_small_patch16_224",
                "drop_path_rate": 0.0,
                "dataset": "ILSVRC/imagenet-1k",
                "epochs": 200,
                "batch_size": 32,
                "optimizer": "SGD",
                "optimizer_options": {"momentum": 0.9},
                "lr": 0.03,
                "weight_decay": 1e-4,
                "num_processes": 8,
                "num_workers": 12,
            },
            "several days on 8 data-centre GPUs",
        ),
        Recipe(
            "mocov3_pretrain",
            "Pretrains ViT-S/16 on ImageNet-1k by MoCo v3; for the paper's batch of 4,096 on 8 processes.",
            {
                "objective": "mocov3",
                "contrast_temperature": 0.2,
                "teacher_momentum": 0.99,
                "freeze_patches": True,
                "model": "vit_small_patch16_224",
                "set": {"position_embedding_type": "sincos", "num_attention_heads": 12},
                "drop_path_rate": 0.0,
                "dataset": "ILSVRC/imagenet-1k",
                "epochs": 300,
                "batch_size": 512,
                "lr": 2.4e-3,
                "schedule": "open_cosine",
                "warmup_epochs": 40,
                "weight_decay": 0.1,
                "mixed_precision": "fp16",
                "num_processes": 8,
                "num_workers": 12,
            },
            "several days on 8 data-centre GPUs",
        ),
        Recipe(
            "deit_distill",
            "DeiT-Ti with hard distillation from a RegNetY on ImageNet-1k; for the paper's batch of 1,024 on 8 "
            "processes.",
            {
                "model": "deit_tiny_distilled_patch16_224",
                "dataset": "ILSVRC/imagenet-1k",
                "teacher": "timm:regnety_160.deit_in1k",
                "distillation": "hard",
                "distillation_alpha": 0.5,
                "drop_path_rate": 0.1,
                "epochs": 300,
                "batch_size": 128,
                "lr": 1e-3,
                "min_lr": 1e-5,
                "warmup_epochs": 5,
                "label_smoothing": 0.1,
                "auto_augment": "randaugment",
                "color_jitter": 0.3,
                "random_erasing": 0.25,
                "mixup": 0.8,
                "cutmix": 1.0,
                "repeated_augmentation": 3,
                "ema_decay": 0.99996,
                "mixed_precision": "bf16",
                "num_processes": 8,
                "num_workers": 12,
            },
            "about 3 days on 8 data-centre GPUs",
        ),
    )
}


def read_recipe(recipe: str) -> dict[str, Any]:
    """
    The options of a shipped recipe, by name, or of a YAML file that maps option names to values.

    Raises:
        UserError: if there is neither, or the file does not hold such a mapping.
    """
    if recipe in RECIPES:
        return dict(RECIPES[recipe].options)
    path = Path(recipe)
    if not path.is_file():
        raise UserError(f"{unknown_name_message('recipe', recipe, RECIPES)}; nor is it a file")
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"recipe {path} cannot be read: {error}") from error
    if not isinstance(options, dict):
        raise UserError(f"recipe {path} does not map option names to values")
    return options

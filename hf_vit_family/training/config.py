"""
The options of `vit-family train`, by what they concern; those of the data are `hf_vit_family.data.load.DataConfig`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import UserError
from ..hub import REVISION_HELP, TRUST_REMOTE_CODE_HELP


def _option(help: str, **default: Any) -> Any:
    return field(metadata={"help": help}, **default)


def _check_at_least(options: Any, least: int, *names: str) -> None:
    """Raises UserError for the first option that is given and smaller."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"option {name!r} is at least {least}, not {value}")


@dataclass
class ModelOptions:
    """Model."""

    model: str = _option("variant with new random weights, or a model folder or Hub id to start from")
    revision: str | None = _option(REVISION_HELP, default=None)
    trust_remote_code: bool = _option(TRUST_REMOTE_CODE_HELP, default=False)
    set: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "fields of the configuration to replace, such as hidden_size=192"}
    )
    drop_path_rate: float | None = _option("stochastic depth; the configuration's own by default", default=None)
    reset_head: bool = _option(
        "give a loaded model a new random head, also where its own knows all classes of the data", default=False
    )
    freeze: Literal["none", "backbone"] = _option(
        "parameters left as they are: none, or backbone: a linear probe trains only the head", default="none"
    )
    lora_rank: int = _option("train low-rank adapters of this rank and the head (needs peft); 0: off", default=0)
    lora_alpha: float = _option("adapters are scaled by lora_alpha / lora_rank", default=16.0)
    gradient_checkpointing: bool = _option("recompute activations in the backward pass to save memory", default=False)
    compile: bool = _option("compile the model with torch.compile", default=False)

    def __post_init__(self):
        _check_at_least(self, 0, "lora_rank")
        if self.drop_path_rate is not None and not 0.0 <= self.drop_path_rate < 1.0:
            raise UserError(f"option 'drop_path_rate' is at least 0 and less than 1, not {self.drop_path_rate}")
        if self.lora_rank and self.freeze != "none":
            raise UserError("lora_rank and freeze exclude each other: adapters already leave the backbone as it is")
        if self.drop_path_rate is not None:
            self.set = {**self.set, "drop_path_rate": self.drop_path_rate}


# Objectives that contrast views, and the options that only some objectives read, with these.
_CONTRASTIVE = ("simclr", "moco", "mocov3", "byol", "supcon", "sit", "sit_tasks")
_READ_BY: dict[tuple[str, ...], tuple[str, ...]] = {
    ("mask_ratio",): ("simmim", "mpp", "mae", "sit", "sit_tasks"),
    ("mask_patch_size",): ("simmim",),
    (*("teacher_revision", "distillation", "distillation_alpha", "temperature", "teacher_image_size"),): (
        "classification",
    ),
    (
        *("local_crops", "local_crop_size", "global_crop_scale", "local_crop_scale", "out_dim", "norm_last_layer"),
        *("head_layers", "head_hidden_size", "head_bottleneck_size", "head_batch_norm", "freeze_last_layer_epochs"),
        *("student_temperature", "teacher_temperature", "teacher_warmup_temperature"),
        *("teacher_temperature_warmup_epochs", "center_momentum"),
    ): ("dino",),
    ("blur_sigma",): ("dino", *_CONTRASTIVE),
    ("teacher_momentum",): ("dino", "moco", "mocov3", "byol", "sit"),
    (
        *("contrast_temperature", "projection_size", "projection_layers", "projection_hidden_size"),
        *("jitter_strength", "view_scale"),
    ): _CONTRASTIVE,
    ("queue_size",): ("moco",),
    ("shuffle_ratio",): ("frame_order",),
    ("corruption", "corruption_align", "reconstruction_weight"): ("sit", "sit_tasks"),
    ("freeze_patches",): ("mocov3", "byol"),
}
READ_BY = {name: objectives for names, objectives in _READ_BY.items() for name in names}


@dataclass
class ObjectiveOptions:
    """Options that say what is learnt."""

    objective: Literal[
        "classification",
        "simmim",
        "mpp",
        "mae",
        "dino",
        "simclr",
        "moco",
        "mocov3",
        "byol",
        "supcon",
        "sit",
        "sit_tasks",
        "frame_order",
    ] = field(
        default="classification",
        metadata={
            "help": "learn labels, from a teacher too where one is given; or pretrain on images without labels: simmim "
            "predicts the pixels of masked blocks, mpp the mean colours of corrupted patches, mae the pixels of "
            "patches that the encoder does not read, dino what a moving average of the model says of other crops; "
            "simclr, moco, mocov3 and byol learn that two views are of one image, and supcon, which reads labels, that "
            "they are of one class; sit and sit_tasks also what groups of pixels were. Models of clips learn by "
            "simclr, moco, mocov3, byol and supcon from two clips of a video, and by frame_order the order of "
            "frames"
        },
    )
    mask_ratio: float | None = _option(
        "share of an image that simmim masks (by default 0.6), mpp and sit corrupt (by default 0.5) or mae hides (by "
        "default the model's own, 0.75)",
        default=None,
    )
    shuffle_ratio: float = _option("share of the frames of a clip that frame_order shuffles", default=0.15)
    mask_patch_size: int = _option("height and width in pixels of the blocks that simmim masks", default=32)
    loss: Literal["cross_entropy", "bce"] = _option(
        "loss of the labels; bce: one sigmoid a class", default="cross_entropy"
    )
    label_smoothing: float = _option("share of the target spread evenly over the classes", default=0.0)
    teacher: str | None = _option(
        "model to distil from: a folder, a Hub id, timm:NAME or torchvision:NAME (pretrained weights), or "
        "timm:NAME@FILE or torchvision:NAME@FILE (a checkpoint)",
        default=None,
    )
    teacher_revision: str | None = _option("branch, tag or commit of a teacher on the Hub", default=None)
    distillation: Literal["hard", "soft"] = _option("learn the teacher's decision, or its distribution", default="hard")
    distillation_alpha: float = _option("weight of the teacher's loss; the labels' is 1 minus it", default=0.5)
    temperature: float = _option("temperature of soft distillation", default=1.0)
    teacher_image_size: int | None = _option("resize images to this size in pixels for the teacher", default=None)
    local_crops: int = _option("small crops of an image that dino's student sees besides the two large ones", default=8)
    local_crop_size: int | None = _option(
        "their height and width in pixels; by default 3/7 of image_size, rounded up to whole patches", default=None
    )
    global_crop_scale: list[float] = field(
        default_factory=lambda: [0.4, 1.0],
        metadata={"help": "smallest and largest part of an image's area in a large crop of dino"},
    )
    local_crop_scale: list[float] = field(
        default_factory=lambda: [0.05, 0.4], metadata={"help": "the same of a small crop"}
    )
    blur_sigma: float = _option(
        "largest standard deviation in pixels of the blur of dino's crops; 0: no blur", default=2.0
    )
    out_dim: int = _option("outputs of dino's head", default=65536)
    head_layers: int = _option("linear layers of dino's head before them, the bottleneck among them", default=3)
    head_hidden_size: int = _option("width of these layers", default=2048)
    head_bottleneck_size: int = _option("width of the last of them", default=256)
    head_batch_norm: bool = _option(
        "batch norms in dino's head: short runs then start from outputs that tell images apart", default=False
    )
    norm_last_layer: bool = _option("keep the weights of each output of dino's head at length 1", default=True)
    freeze_last_layer_epochs: int = _option("epochs at the start that leave these weights as they are", default=1)
    student_temperature: float = _option("temperature of the student's distribution in dino", default=0.1)
    teacher_temperature: float = _option("temperature of the teacher's", default=0.04)
    teacher_warmup_temperature: float = _option("temperature of the teacher's at the start", default=0.04)
    teacher_temperature_warmup_epochs: int = _option("epochs from that to teacher_temperature", default=0)
    teacher_momentum: float | None = _option(
        "share of the moving average that a step keeps; but for moco at the start, from where a cosine leads to 1; by "
        "default the published one: dino, byol and sit 0.996, moco 0.999, mocov3 0.99",
        default=None,
    )
    center_momentum: float = _option("share of the centre of dino's teacher that a step keeps", default=0.9)

    contrast_temperature: float | None = _option(
        "temperature of the contrast between views; by default the published one: simclr and supcon 0.1, moco 0.2 or "
        "with one projection layer 0.07, mocov3 0.2",
        default=None,
    )
    projection_size: int | None = _option(
        "channels of the projections that are contrasted; by default simclr, supcon and moco 128, mocov3 and byol 256",
        default=None,
    )
    projection_layers: int | None = _option(
        "linear layers of the projection; by default 2, of mocov3 3; with 1, moco is its version 1", default=None
    )
    projection_hidden_size: int | None = _option(
        "width of the layers between; by default simclr and moco the model's, supcon 2048, mocov3 and byol 4096",
        default=None,
    )
    jitter_strength: float = _option("factor of the published changes of colour in contrasted views", default=1.0)
    view_scale: list[float] | None = field(
        default=None,
        metadata={
            "help": "smallest and largest part of an image's area in a contrasted view; by default from 0.08, of moco "
            "0.2, to 1"
        },
    )
    queue_size: int = _option("keys of earlier images that moco contrasts with", default=65536)
    corruption: Literal["zeros", "noise", "copy", "other"] = _option(
        "what groups of pixels become in sit: 0, noise, what is elsewhere in the image, or in another image",
        default="noise",
    )
    corruption_align: int = _option("pixels that sides and places of these groups are multiples of", default=1)
    reconstruction_weight: float = _option("weight of their reconstruction in sit; of small data 5", default=1.0)
    freeze_patches: bool = _option("leave mocov3's projection of patches at its random start", default=False)

    def check_read(self) -> None:
        """Raises UserError for the first option that is given and that the objective does not read."""
        defaults = ObjectiveOptions()
        for name, objectives in READ_BY.items():
            if self.objective not in objectives and getattr(self, name) != getattr(defaults, name):
                raise UserError(
                    f"option {name!r} is for the objective {' or '.join(objectives)}, and {self.objective} does not "
                    f"read it: leave it at {getattr(defaults, name)}"
                )

    def __post_init__(self):
        for name in ("label_smoothing", "distillation_alpha", "teacher_momentum", "center_momentum"):
            if getattr(self, name) is not None and not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"option {name!r} is between 0 and 1, not {getattr(self, name)}")
        if self.mask_ratio is not None and not 0.0 < self.mask_ratio < 1.0:
            raise UserError(f"option 'mask_ratio' lies between 0 and 1, not {self.mask_ratio}")
        if not 0.0 < self.shuffle_ratio <= 1.0:
            raise UserError(f"option 'shuffle_ratio' is above 0 and at most 1, not {self.shuffle_ratio}")
        _check_at_least(self, 1, "teacher_image_size", "mask_patch_size", "local_crop_size", "head_layers")
        _check_at_least(self, 1, "head_hidden_size", "head_bottleneck_size")
        _check_at_least(self, 2, "out_dim")
        _check_at_least(self, 0, "local_crops", "freeze_last_layer_epochs", "teacher_temperature_warmup_epochs")
        _check_at_least(self, 0, "blur_sigma")
        for name in ("temperature", "student_temperature", "teacher_temperature", "teacher_warmup_temperature"):
            if getattr(self, name) <= 0:
                raise UserError(f"option {name!r} is greater than 0, not {getattr(self, name)}")
        _check_at_least(self, 1, "projection_layers", "projection_hidden_size", "queue_size", "corruption_align")
        _check_at_least(self, 0, "reconstruction_weight")
        _check_at_least(self, 2, "projection_size")
        _check_at_least(self, 0, "jitter_strength")
        if self.contrast_temperature is not None and self.contrast_temperature <= 0:
            raise UserError(f"option 'contrast_temperature' is greater than 0, not {self.contrast_temperature}")
        for name in ("global_crop_scale", "local_crop_scale", "view_scale"):
            scale = getattr(self, name)
            if scale is None:
                continue
            if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
                raise UserError(f"option {name!r} is two rising numbers from above 0 to 1, not {scale}")


@dataclass
class OptimizationOptions:
    """Optimisation."""

    epochs: int = _option("passes over the training images", default=10)
    max_steps: int | None = _option("train for this many optimiser steps, fewer or more than epochs says", default=None)
    batch_size: int = _option("images in a forward pass of one process", default=128)
    gradient_accumulation_steps: int = _option("forward passes for one optimiser step", default=1)
    optimizer: str = _option("a class of torch.optim", default="AdamW")
    optimizer_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "its other arguments, such as momentum=0.9"}
    )
    lr: float = _option("highest learning rate", default=1e-3)
    min_lr: float = _option("learning rate at the end of a cosine or linear schedule", default=0.0)
    schedule: Literal["cosine", "open_cosine", "linear", "constant"] = _option(
        "learning rate after warm-up; open_cosine is DINO's, which warms up from 0 and ends one step before min_lr",
        default="cosine",
    )
    warmup_epochs: float = _option("epochs over which the learning rate rises from 0", default=0.0)
    warmup_steps: int | None = _option("the same in optimiser steps; overrides warmup_epochs", default=None)
    weight_decay: float = _option("none on norms, biases, positions and tokens", default=0.05)
    weight_decay_end: float | None = _option(
        "weight decay that a cosine leads to at the end; by default it stays as it is", default=None
    )
    layer_decay: float = _option("factor of the learning rate from each layer to the one before it", default=1.0)
    clip_grad_norm: float | None = _option("clip the norm of the gradient to this", default=None)
    clip_grad_by: Literal["all", "parameter"] = _option(
        "clip the norm of the whole gradient, or that of each parameter by itself", default="all"
    )
    ema_decay: float | None = _option(
        "keep an exponential moving average of the weights, and evaluate and save it", default=None
    )
    mixed_precision: Literal["no", "bf16", "fp16"] | None = _option(
        "precision of forward and backward passes; by default what accelerate launch was told, else no", default=None
    )
    seed: int = _option("seed of weights, order, augmentation and dropout", default=0)

    def __post_init__(self):
        for name in ("epochs", "batch_size", "gradient_accumulation_steps", "lr"):
            if getattr(self, name) <= 0:
                raise UserError(f"option {name!r} is greater than 0, not {getattr(self, name)}")
        if self.max_steps is not None and self.max_steps <= 0:
            raise UserError(f"option 'max_steps' is greater than 0, not {self.max_steps}")
        _check_at_least(self, 0, "min_lr", "warmup_epochs", "warmup_steps", "weight_decay", "weight_decay_end", "seed")
        if self.seed >= 2**32:
            raise UserError(f"option 'seed' is less than 2 ** 32, not {self.seed}")
        if self.clip_grad_norm is not None and self.clip_grad_norm <= 0:
            raise UserError(f"option 'clip_grad_norm' is greater than 0, not {self.clip_grad_norm}")
        if self.ema_decay is not None and not 0.0 <= self.ema_decay < 1.0:
            raise UserError(f"option 'ema_decay' is at least 0 and less than 1, not {self.ema_decay}")
        if not 0.0 < self.layer_decay <= 1.0:
            raise UserError(f"option 'layer_decay' is greater than 0 and at most 1, not {self.layer_decay}")


@dataclass
class RunOptions:
    """Run and output."""

    output: str = _option("folder for the model, its processor, measurements and checkpoints")
    resume: bool = _option("go on from the newest checkpoint in the output folder", default=False)
    overwrite: bool = _option(
        "delete what an earlier run wrote into the output folder first, and nothing else", default=False
    )
    checkpoint_steps: int | None = _option("optimiser steps between checkpoints; by default one an epoch", default=None)
    checkpoint_limit: int = _option("checkpoints kept, besides the best", default=2)
    eval_epochs: int = _option("epochs between evaluations; the last epoch is always evaluated", default=1)
    eval_batch_size: int | None = _option("images in a forward pass of evaluation; batch_size by default", default=None)
    best_metric: str | None = _option(
        "metric of the evaluation that marks the best checkpoint: the highest, of loss and ece the lowest; by default "
        "accuracy, in pretraining the loss",
        default=None,
    )
    final_weights: Literal["last", "best"] = _option(
        "weights to save at the end; best was chosen on the evaluation images, so its score flatters", default="last"
    )
    log_steps: int = _option("optimiser steps between lines of metrics.jsonl", default=20)
    trackers: list[str] = field(
        default_factory=list, metadata={"help": "tensorboard, trackio, wandb, ... (any that Accelerate knows)"}
    )
    num_processes: int = _option("processes on this machine, one for each GPU or sharing the CPU", default=1)

    def __post_init__(self):
        if self.resume and self.overwrite:
            raise UserError("resume and overwrite exclude each other")
        _check_at_least(self, 1, "checkpoint_limit", "checkpoint_steps", "eval_epochs", "eval_batch_size")
        _check_at_least(self, 1, "log_steps", "num_processes")

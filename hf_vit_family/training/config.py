"""The options of `vit-family train`, by what they concern; those of the data are `hf_vit_family.data.DataConfig`."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import UserError


def _option(help: str, **default: Any) -> Any:
    return field(metadata={"help": help}, **default)


@dataclass
class ModelOptions:
    """Model."""

    model: str = _option("variant with new random weights, or a model folder or Hub id to start from")
    set: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "fields of the configuration to replace, such as hidden_size=192"}
    )
    drop_path_rate: float | None = _option("stochastic depth; the configuration's own by default", default=None)
    reset_head: bool = _option("give a loaded model a new random head for the classes of the data", default=False)
    freeze: Literal["none", "backbone"] = _option(
        "parameters left as they are: none, or backbone: a linear probe trains the head alone", default="none"
    )
    lora_rank: int = _option("train low-rank adapters of this rank and the head (needs peft); 0: off", default=0)
    lora_alpha: float = _option("adapters are scaled by lora_alpha / lora_rank", default=16.0)
    gradient_checkpointing: bool = _option("recompute activations in the backward pass to save memory", default=False)
    compile: bool = _option("compile the model with torch.compile", default=False)

    def __post_init__(self):
        if self.lora_rank and self.freeze != "none":
            raise UserError("lora_rank and freeze exclude each other: adapters already leave the backbone as it is")
        if self.drop_path_rate is not None:
            self.set = {**self.set, "drop_path_rate": self.drop_path_rate}


@dataclass
class ObjectiveOptions:
    """Loss and distillation."""

    loss: Literal["cross_entropy", "bce"] = _option(
        "loss of the labels; bce: one sigmoid a class", default="cross_entropy"
    )
    label_smoothing: float = _option("share of the target spread evenly over the classes", default=0.0)
    teacher: str | None = _option(
        "model to distil from: a folder, a Hub id, timm:NAME or torchvision:NAME (pretrained weights), or "
        "timm:NAME@FILE or torchvision:NAME@FILE (a checkpoint)",
        default=None,
    )
    distillation: Literal["hard", "soft"] = _option("learn the teacher's decision, or its distribution", default="hard")
    distillation_alpha: float = _option("weight of the teacher's loss; the labels' is 1 minus it", default=0.5)
    temperature: float = _option("temperature of soft distillation", default=1.0)
    teacher_image_size: int | None = _option("resize images to this size in pixels for the teacher", default=None)

    def __post_init__(self):
        for name in ("label_smoothing", "distillation_alpha"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"option {name!r} is between 0 and 1, not {getattr(self, name)}")
        if self.temperature <= 0:
            raise UserError(f"option 'temperature' is greater than 0, not {self.temperature}")


@dataclass
class OptimizationOptions:
    """Optimisation."""

    epochs: int = _option("passes over the training images", default=10)
    max_steps: int | None = _option("end after this many optimiser steps, whatever epochs says", default=None)
    batch_size: int = _option("images in a forward pass of one process", default=128)
    gradient_accumulation_steps: int = _option("forward passes for one optimiser step", default=1)
    optimizer: str = _option("a class of torch.optim", default="AdamW")
    optimizer_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "its other arguments, such as momentum=0.9"}
    )
    lr: float = _option("highest learning rate", default=1e-3)
    min_lr: float = _option("learning rate at the end of a cosine or linear schedule", default=0.0)
    schedule: Literal["cosine", "linear", "constant"] = _option("learning rate after warm-up", default="cosine")
    warmup_epochs: float = _option("epochs over which the learning rate rises from 0", default=0.0)
    warmup_steps: int | None = _option("the same in optimiser steps; overrides warmup_epochs", default=None)
    weight_decay: float = _option("none on norms, biases, positions and tokens", default=0.05)
    layer_decay: float = _option("factor of the learning rate from each layer to the one before it", default=1.0)
    clip_grad_norm: float | None = _option("clip the norm of the gradient to this", default=None)
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
        if self.ema_decay is not None and not 0.0 <= self.ema_decay < 1.0:
            raise UserError(f"option 'ema_decay' is at least 0 and less than 1, not {self.ema_decay}")
        if not 0.0 < self.layer_decay <= 1.0:
            raise UserError(f"option 'layer_decay' is greater than 0 and at most 1, not {self.layer_decay}")


@dataclass
class RunOptions:
    """Run and output."""

    output: str = _option("folder for the model, its processor, measurements and checkpoints")
    resume: bool = _option("go on from the newest checkpoint in the output folder", default=False)
    overwrite: bool = _option("delete an earlier run in the output folder first", default=False)
    checkpoint_steps: int | None = _option("optimiser steps between checkpoints; by default one an epoch", default=None)
    checkpoint_limit: int = _option("checkpoints kept, besides the best", default=2)
    eval_epochs: int = _option("epochs between evaluations; the last epoch is always evaluated", default=1)
    eval_batch_size: int | None = _option("images in a forward pass of evaluation; batch_size by default", default=None)
    best_metric: str = _option("metric of the evaluation that marks the best checkpoint", default="accuracy")
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
        for name in ("checkpoint_limit", "eval_epochs", "log_steps", "num_processes"):
            if getattr(self, name) < 1:
                raise UserError(f"option {name!r} is at least 1, not {getattr(self, name)}")
        if self.checkpoint_steps is not None and self.checkpoint_steps < 1:
            raise UserError(f"option 'checkpoint_steps' is at least 1, not {self.checkpoint_steps}")

"""What the optimiser gets: parameter groups, learning rates, and a moving average of the weights."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import UserError
from ..modeling.configuration_vitf import unknown_name_message

# Parts of names of parameters with two or more dimensions that carry positions, tokens or temperatures, which decay would
# pull towards zero for no reason (facebookresearch/deit@7e160fe models.py no_weight_decay; microsoft/Swin-Transformer
# utils: relative_position_bias_table, cpb_mlp, logit_scale).
NO_DECAY = ("position", "cls_token", "distillation_token", "register_token", "mask_token", "cpb_mlp", "logit_scale")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to norms, biases and scales (one dimension), positions and tokens."""
    return parameter.ndim > 1 and not any(part in name for part in NO_DECAY)


def _layer_classes(model: PreTrainedModel) -> tuple[type, ...]:
    """The classes whose outputs the model records as hidden states: its layers."""
    recorded = (getattr(model, "_can_record_outputs", None) or {}).get("hidden_states", ())
    recorded = recorded if isinstance(recorded, (list, tuple)) else [recorded]
    return tuple(getattr(entry, "target_class", entry) for entry in recorded)


def layer_depths(model: PreTrainedModel) -> dict[str, int]:
    """
    The depth of each parameter, by name: 0 for embeddings, 1 to L for the L layers, L + 1 for what follows and the head.

    Layers are the modules that the model records hidden states of, in their order of registration; a parameter between
    two layers, such as a patch merging, belongs with the second.

    Raises:
        UserError: if the model does not say what its layers are.
    """
    classes = _layer_classes(model)
    base = model.base_model
    prefix = "" if base is model else f"{model.base_model_prefix}."
    layers = [name + "." for name, module in base.named_modules() if classes and isinstance(module, classes)]
    if not layers:
        raise UserError(f"{type(model).__name__} does not say what its layers are: layer_decay cannot be used with it")
    depths, passed = {}, 0
    for name, _ in base.named_parameters():
        inside = next((i for i, layer in enumerate(layers, 1) if name.startswith(layer)), None)
        if inside is not None:
            passed = inside
        between = passed + 1 if passed else 0
        depths[prefix + name] = inside if inside is not None else between
    return {name: depths.get(name, len(layers) + 1) for name, _ in model.named_parameters()}


def parameter_groups(model: PreTrainedModel, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """
    Trainable parameters grouped for an optimiser: `params`, `weight_decay`, and `lr_scale`, by which the learning rate is
    multiplied: `layer_decay ** (L + 1 - depth)` with the depths of `layer_depths` (arXiv 2106.08254, appendix; the head
    has 1).
    """
    depths = layer_depths(model) if layer_decay < 1.0 else {}
    top = max(depths.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth, decay = depths.get(name, top), decays(name, parameter)
        group = groups.setdefault(
            (depth, decay),
            {
                "params": [],
                "weight_decay": weight_decay if decay else 0.0,
                "lr_scale": layer_decay ** (top - depth),
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def make_optimizer(
    name: str, groups: list[dict[str, Any]], lr: float, options: dict[str, Any]
) -> torch.optim.Optimizer:
    """An optimiser of torch.optim by the name of its class. Raises UserError for a name or argument it does not have."""
    classes = {
        key: value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    if name not in classes:
        raise UserError(unknown_name_message("optimizer", name, classes))
    try:
        return classes[name](groups, lr=lr, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer {name}: {error}") from error


def learning_rate(step: int, total_steps: int, warmup_steps: int, lr: float, min_lr: float, schedule: str) -> float:
    """
    The learning rate of optimiser step `step`, counted from 0: a linear rise over `warmup_steps` to `lr`, then a cosine or
    straight fall to `min_lr` at the last step, or none. A function of the step alone: there is no state to resume.
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if schedule == "constant":
        return lr
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    share = (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress
    return min_lr + (lr - min_lr) * share


class WeightAverage:
    """
    Exponential moving average of a model's floating-point parameters and buffers; others are copied.

    After n updates, `average = d * average + (1 - d) * weights` with `d = min(decay, (1 + n) / (10 + n))`: the ramp keeps
    the random start out of the average of a short run (tf.train.ExponentialMovingAverage, `num_updates`).

    Args:
        model: Gives the tensors, and takes the average inside `applied()`.
        decay: Limit of d.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.average = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights of the present step into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        moving = [name for name, tensor in self.tensors.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.average[n] for n in moving], [self.tensors[n].detach() for n in moving], 1 - decay)
        for name in self.tensors.keys() - moving:
            self.average[name].copy_(self.tensors[name])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside this context the model holds the average; afterwards its own weights again, bit for bit."""
        own = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self._write(self.average)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: dict[str, torch.Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, tensor in self.average.items():
            tensor.copy_(state["average"][name])
        self.updates = state["updates"]

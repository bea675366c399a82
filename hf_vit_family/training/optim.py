"""Prepares what the optimiser gets: parameter groups, learning rates, and a moving average of the weights."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import UserError
from ..modeling.configuration_vitf import unknown_name_message


def layer_depths(model: PreTrainedModel) -> dict[str, int]:
    """
    The depth of each parameter, by name: 0 for the stem, 1 to L for the L layers, L + 1 for what follows and the head,
    as the model's `layer_groups` says.

    Raises:
        UserError: if the model does not say what its layers are.
    """
    if not hasattr(model, "layer_groups"):
        raise UserError(f"{type(model).__name__} does not say what its layers are: layer_decay cannot be used with it")
    groups = model.layer_groups()
    depths = {}
    for depth, group in enumerate(groups):
        for member in group:
            for parameter in [member] if isinstance(member, nn.Parameter) else member.parameters():
                depths[id(parameter)] = depth
    return {name: depths.get(id(parameter), len(groups)) for name, parameter in model.named_parameters()}


def parameter_groups(
    model: PreTrainedModel, weight_decay: float, layer_decay: float = 1.0, without_decay: set[str] | None = None
) -> list[dict[str, Any]]:
    """
    Trainable parameters grouped for an optimiser: `params`, `weight_decay`, `decays`, whether it has any, and
    `lr_scale`, by which the learning rate is multiplied: `layer_decay ** (L + 1 - depth)` with the depths of
    `layer_depths` (arXiv 2106.08254, appendix; the head has 1).

    Args:
        without_decay: Names of the parameters without decay; by default those that the model says.
    """
    depths = layer_depths(model) if layer_decay < 1.0 else {}
    if without_decay is None:
        without_decay = model.parameters_without_decay()
    top = max(depths.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth, decay = depths.get(name, top), name not in without_decay
        group = groups.setdefault(
            (depth, decay),
            {
                "params": [],
                "weight_decay": weight_decay if decay else 0.0,
                "decays": decay,
                "lr_scale": layer_decay ** (top - depth),
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def own_parameter_groups(
    objective: nn.Module, weight_decay: float, decays_vectors: bool = False
) -> list[dict[str, Any]]:
    """
    The same of what an objective trains besides its `model`: matrices decay, and vectors such as tokens and biases only
    with `decays_vectors`.
    """
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": weight_decay * decays, "decays": decays, "lr_scale": 1.0}
        for decays in (False, True)
    ]
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad and not name.startswith("model."):
            groups[decays_vectors or parameter.ndim > 1]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def make_optimizer(
    name: str, groups: list[dict[str, Any]], lr: float, options: dict[str, Any]
) -> torch.optim.Optimizer:
    """
    An optimiser of torch.optim by the name of its class. Raises UserError for a name or argument it does not have.
    """
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


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` at progress 0 to `end` at 1, along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def learning_rate(step: int, total_steps: int, warmup_steps: int, lr: float, min_lr: float, schedule: str) -> float:
    """
    The learning rate of optimiser step `step`, counted from 0: a linear rise over `warmup_steps` to `lr`, then a cosine
    or straight fall to `min_lr` at the last step, or none. A function of the step only: there is no state to resume.

    `"open_cosine"` is that of facebookresearch/dino@7c446df utils.py: the rise begins at 0 and ends at `lr`, and
    `min_lr` is what would come after the last step.
    """
    if schedule == "open_cosine":
        if step < warmup_steps:
            return lr * step / max(1, warmup_steps - 1)
        return cosine(lr, min_lr, (step - warmup_steps) / (total_steps - warmup_steps))
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if schedule == "constant":
        return lr
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    share = (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress
    return min_lr + (lr - min_lr) * share


def clip_each(parameters: Iterable[nn.Parameter], limit: float) -> torch.Tensor:
    """
    Shortens the gradient of each parameter by itself to the norm `limit`, as facebookresearch/dino@7c446df utils.py.

    Returns:
        The norm of all gradients together before that.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch._foreach_norm(gradients)
    torch._foreach_mul_(gradients, [(limit / (norm + 1e-6)).clamp(max=1.0) for norm in norms])
    return torch.stack(norms).norm()


class WeightAverage:
    """
    Exponential moving average of a model's floating-point parameters and buffers; others are copied.

    After n updates, `average = d * average + (1 - d) * weights` with `d = min(decay, (1 + n) / (10 + n))`: the ramp
    keeps the random start out of the average of a short run (tf.train.ExponentialMovingAverage, `num_updates`).

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

"""Teachers that are moving averages of what is in training."""

import copy
from typing import Any

import torch
from torch import nn

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


class MomentumTeacher(nn.Module):
    """
    A copy of a module that follows it: without gradients, and part of a run's checkpoints.

    Nothing in it is random: dropout and stochastic depth are off. Its batch norms use the batch in training, and keep
    statistics of their own, since the average is over parameters only (facebookresearch/dino@7c446df main_dino.py,
    facebookresearch/moco-v3@c349e6e moco/builder.py).

    Args:
        student: Any module; the copy starts with its weights.
    """

    def __init__(self, student: nn.Module):
        super().__init__()
        self.module = copy.deepcopy(student).requires_grad_(False)
        self.train(student.training)

    def train(self, mode: bool = True) -> "MomentumTeacher":
        super().train(False)
        self.training = mode
        for module in self.modules():
            if isinstance(module, _BATCH_NORMS):
                module.train(mode)
        return self

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """Parameters become `momentum * own + (1 - momentum) * the student's`; buffers stay."""
        own, others = (list(module.parameters()) for module in (self.module, student))
        torch._foreach_mul_(own, momentum)
        torch._foreach_add_(own, [other.detach() for other in others], alpha=1 - momentum)


@torch.no_grad()
def mean_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all processes; each calls it, and gets the same."""
    if not torch.distributed.is_initialized():
        return tensor
    total = tensor.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()

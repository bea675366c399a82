"""
What several processes see together: of losses and norms over a batch, so that they compute what one process would with
the whole batch.

Each process computes the loss of its own share of the examples, or of all, and the mean over processes is that of the
whole batch: gradients of parameters, which are averaged over processes too, are then those of the whole batch.
"""

from typing import Any

import torch
from torch import nn


def process_index() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


class _Gather(torch.autograd.Function):
    """All processes' tensors in their order; a gradient goes back to the process that the tensor came from."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].contiguous().clone()
        torch.distributed.all_reduce(total)
        return total.chunk(torch.distributed.get_world_size())[process_index()]


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """
    The tensors (B, ...) of all processes, (processes * B, ...), in their order. Each process calls it, with as many
    rows. Gradients go through it.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return tensor
    return _Gather.apply(tensor)


class GatheredBatchNorm1d(nn.BatchNorm1d):
    """A batch norm of features (B, C) whose statistics in training are those of the batches of all processes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        begin = process_index() * len(input)
        return super().forward(gather(input))[begin : begin + len(input)]

"""Layers that three or more architectures use identically."""

import math
from typing import ClassVar

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.utils.output_capturing import OutputRecorder


class HiddenState(nn.Identity):
    """
    What an encoder passes through it is recorded as one of `hidden_states` (by `RECORDED_HIDDEN_STATES`).

    For an encoder that runs the layers of its stages itself. A stage that ran them could be recorded instead, but it
    would keep its input in memory until the last of them: a tenth of the peak, where the first stage has the largest
    maps.
    """


# A list, for transformers resolves negative indices by the recorder otherwise, and would count one state too few.
RECORDED_HIDDEN_STATES = [OutputRecorder(HiddenState, capture_initial_hidden_state=False)]


class QuickGELU(nn.Module):
    """
    x * sigmoid(1.702 * x), by the fused kernel of SiLU: training keeps two tensors where the plain product keeps three.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(1.702 * hidden_states) / 1.702


class Mlp(nn.Module):
    """Feed-forward layer: `fc1`, activation, dropout, `fc2`, dropout; (B, N, C) to (B, N, C)."""

    def __init__(self, config, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation = QuickGELU() if config.hidden_act == "quick_gelu" else ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc2(self.dropout(self.activation(self.fc1(hidden_states)))))


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (arXiv 2103.17239, section 2)."""

    def __init__(self, hidden_size: int, init_value: float):
        super().__init__()
        self.init_value = init_value
        self.weight = nn.Parameter(torch.full((hidden_size,), float(init_value)))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.weight


class DropPath(nn.Module):
    """Stochastic depth: while training, drops a residual branch for a whole sample with probability `rate`."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.rate == 0.0 or not self.training:
            return hidden_states
        keep = 1.0 - self.rate
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        return hidden_states * hidden_states.new_empty(shape).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def drop_path_rates(rate: float, num_layers: int, schedule: str = "linear") -> list[float]:
    """The drop path rate of each layer: `"linear"` from 0 to `rate`, or `"constant"`. Plain floats: safe on meta."""
    if schedule == "constant" or num_layers == 1:
        return [rate if schedule == "constant" else 0.0] * num_layers
    return [rate * i / (num_layers - 1) for i in range(num_layers)]


def init_torch_default(module: nn.Linear | nn.Conv2d) -> None:
    """PyTorch's own initialisation of a linear or convolution layer, in a form that keeps loaded tensors."""
    init.kaiming_uniform_(module.weight, a=math.sqrt(5))
    if module.bias is not None:
        bound = 1 / math.sqrt(module.weight[0].numel())
        init.uniform_(module.bias, -bound, bound)


class BatchTooSmallError(ValueError):
    """Batch norm cannot learn from one value for each channel."""


class _CheckedBatchNorm:
    """A batch norm that says what to do where it is given one value for each channel while training."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.training and hidden_states.numel() == hidden_states.shape[1]:
            raise BatchTooSmallError(
                "batch norm needs more than one value for each channel while training: train on batches of at least "
                "two images, and drop a last batch of one (drop_last=True of a DataLoader, dataloader_drop_last=True "
                "of transformers' Trainer)"
            )
        return super().forward(hidden_states)


class BatchNorm1d(_CheckedBatchNorm, nn.BatchNorm1d):
    """(N, C) to (N, C)."""


class BatchNorm2d(_CheckedBatchNorm, nn.BatchNorm2d):
    """(B, C, h, w) to (B, C, h, w)."""


class FrozenParametersMixin:
    """
    A module with parameters that nothing trains, named in `frozen_parameters`: published files hold them. Loading makes
    new parameters, which learn by default, and data parallel training would wait for their gradients.
    """

    frozen_parameters: ClassVar[tuple[str, ...]] = ()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name in self.frozen_parameters and param is not None:
            param.requires_grad_(False)
        super().register_parameter(name, param)


def init_batch_norm(module: nn.BatchNorm2d) -> None:
    """Weight 1, bias 0, and running statistics that have seen nothing."""
    init.ones_(module.weight)
    init.zeros_(module.bias)
    init.zeros_(module.running_mean)
    init.ones_(module.running_var)
    init.zeros_(module.num_batches_tracked)


def init_lecun_normal(weight: torch.Tensor) -> None:
    """
    Flax's lecun_normal: variance 1 / fan_in, cut at two standard deviations of the normal before the cut, whose
    deviation the constant restores. (`transformers.initialization.lecun_normal_` cuts at 2.0 absolute: 14 % too wide.)
    """
    std = weight[0].numel() ** -0.5 / 0.87962566103423978
    init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def init_trunc_normal(module: nn.Module, std: float) -> None:
    """
    The initialisation that timm gave to DeiT and its descendants (facebookresearch/deit@7e160fe, timm 0.3.2): linear
    layers truncated normal with zero bias, norms 1 and 0, convolutions as PyTorch has them, layer scales their
    configured value.
    """
    if isinstance(module, nn.Linear):
        init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        init_torch_default(module)
    elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, nn.RMSNorm):
        init.ones_(module.weight)
    elif isinstance(module, nn.BatchNorm2d):
        init_batch_norm(module)
    elif isinstance(module, LayerScale):
        init.constant_(module.weight, module.init_value)


def init_jax(module: nn.Module) -> None:
    """
    The initialisation of google-research/vision_transformer@c6de1e5 vit_jax/models_vit.py: Xavier uniform layers, LeCun
    normal patches, zero head.
    """
    if isinstance(module, nn.Conv2d):
        init_lecun_normal(module.weight)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, nn.RMSNorm):
        init.ones_(module.weight)
    elif isinstance(module, nn.Linear):
        init.zeros_(module.weight)  # the classifier; layers inside the encoder follow below, from their parents
        if module.bias is not None:
            init.zeros_(module.bias)
    elif hasattr(module, "qkv"):
        # Queries, keys and values are three square matrices to the original, one tall matrix here.
        bound = math.sqrt(6 / (2 * module.qkv.in_features))
        init.uniform_(module.qkv.weight, -bound, bound)
        init.xavier_uniform_(module.proj.weight)
    elif isinstance(module, Mlp):
        for linear in (module.fc1, module.fc2):
            init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                init.normal_(linear.bias, std=1e-6)

"""Low-rank adapters (LoRA, arXiv 2106.09685): train few parameters, save a plain model."""

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import UserError


def add_adapters(model: PreTrainedModel, rank: int, alpha: float) -> None:
    """
    LoRA (arXiv 2106.09685) on every linear layer of the backbone, in place; the head stays in training as it is.

    Raises:
        UserError: if peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("lora_rank needs peft: pip install peft") from None
    base = model.base_model
    targets = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), base)
    for name, parameter in base.named_parameters():
        parameter.requires_grad = "lora_" in name


def merge_adapters(weights: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """
    The weights of a model with adapters as those of the plain model: `W + scale * B A`.

    Args:
        weights: State of a model that went through `add_adapters`.
        scale: `alpha / rank`.
    """
    merged = {name.replace(".base_layer.", "."): w for name, w in weights.items() if ".lora_" not in name}
    for name, down in weights.items():
        layer, found, adapter = name.partition(".lora_A.")
        if found:
            merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + scale * weights[f"{layer}.lora_B.{adapter}"] @ down
    return merged

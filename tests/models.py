"""Tiny models of every architecture, made from the dossiers in `architectures`: what all suites run."""

import copy
import math
from typing import Any

import torch
from architectures import DOSSIERS
from dossier import Dossier
from torch import nn
from transformers import PreTrainedModel

from hf_vit_family import ARCHITECTURES
from hf_vit_family.modeling.configuration_vitf import VitfConfig, pair
from hf_vit_family.registry import Architecture

# Case to the fields of a tiny configuration. A case is the name of an architecture, or that name, "-" and an option.
TINY: dict[str, dict[str, Any]] = {case: fields for each in DOSSIERS.values() for case, fields in each.tiny.items()}

# One case an architecture, for checks that cost seconds.
PLAIN_CASES = [case for case in TINY if "-" not in case]
# Those of architectures that take clips, and of all others.
VIDEO_CASES = [case for case in TINY if "num_frames" in TINY[case]]
IMAGE_CASES = [case for case in TINY if case not in VIDEO_CASES]
HEADS = [(case, head) for case in TINY for head in ARCHITECTURES[case.partition("-")[0]].heads]
PLAIN_HEADS = [(case, head) for case, head in HEADS if case in PLAIN_CASES]
TRAINABLE_HEADS = [(case, head) for case, head in HEADS if head.startswith("For")]
# For checks that cost seconds a head: all heads of the first architecture (their code is shared by the others), and of
# each other one the classifier and the backbone, which between them run all that is its own.
COSTLY_HEADS = [
    (case, head)
    for case, head in PLAIN_HEADS
    if case == PLAIN_CASES[0] or head == "Backbone" or head.endswith("Classification")
]


def architecture_of(case: str) -> Architecture:
    """The row of the registry that a case of `TINY` belongs to."""
    return ARCHITECTURES[case.partition("-")[0]]


def dossier_of(case: str) -> Dossier:
    """The dossier that a case of `TINY` comes from."""
    return DOSSIERS[case.partition("-")[0]]


def classification_head(case: str) -> str:
    """The suffix of the classifier: `"ForImageClassification"` or its counterpart for video."""
    return next(head for head in architecture_of(case).heads if head.endswith("Classification"))


def tiny_config(case: str, **overrides: Any) -> VitfConfig:
    """The tiny configuration of a case of `TINY`, with some fields replaced."""
    return architecture_of(case).config_class(**{**TINY[case], **overrides})


def randomise(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Fills every parameter with noise: with zero heads and unit norms, many mistakes pass unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            is_norm = name.endswith("weight") and "norm" in name
            parameter.copy_(noise + 1 if is_norm else noise)
    return model


def tiny_model(case: str, head: str | None = None, **overrides: Any) -> PreTrainedModel:
    """A tiny model with every parameter random, in evaluation mode; `head` defaults to the classifier."""
    model_class = architecture_of(case).model_class(head or classification_head(case))
    return randomise(model_class(tiny_config(case, **overrides))).eval()


def fresh(model: PreTrainedModel) -> PreTrainedModel:
    """A new model with the same weights that has computed nothing yet, in evaluation mode."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = model.config._attn_implementation
    new = type(model)(config).to(model.dtype)
    new.load_state_dict(model.state_dict())
    return new.eval()


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    """
    The same parameters and buffers, bit for bit. Outputs are then equal but for their last bits: where tensors lie in
    memory, which is elsewhere in a model that was loaded, decides which instructions some processors take.
    """
    tensors = expected.state_dict()
    assert found.state_dict().keys() == tensors.keys()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name


def size_multiple(config: VitfConfig) -> tuple[int, int]:
    """(height, width) in pixels that a size must be a multiple of to fit every stage."""
    return tuple(max(stride[axis] for stride in config.stage_strides) for axis in (0, 1))


def random_pixels(
    config: VitfConfig,
    batch: int = 2,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    num_frames: int | None = None,
) -> torch.Tensor:
    """
    Random (batch, num_channels, height, width), or (batch, num_frames, num_channels, height, width) for a model of
    clips; `size` and `num_frames` default to the configured ones.
    """
    *frames, num_channels, height, width = config.input_shape
    if num_frames is not None:
        frames = [num_frames]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *frames, num_channels, *(size or (height, width)), generator=generator)


def random_mask(config: VitfConfig, batch: int = 2, size: tuple[int, int] | None = None) -> torch.Tensor:
    """A boolean mask (batch, patches) that hides two patches of three, for masked image modelling."""
    (rows, columns), (height, width) = config.stage_strides[0], size or pair(config.image_size)
    patches = (height // rows) * (width // columns)
    return (torch.arange(batch * patches) % 3 != 0).view(batch, patches)


def random_noise(config: VitfConfig, batch: int = 2, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Random numbers (batch, patches), by which MAE chooses what it reads."""
    patches = math.prod(config.feature_map_sizes(*(size or pair(config.image_size)))[-1])
    return torch.rand(batch, patches, generator=torch.Generator().manual_seed(0))


def training_inputs(model: PreTrainedModel, batch: int = 2) -> dict[str, torch.Tensor]:
    """Inputs with which a head returns a loss."""
    inputs = {"pixel_values": random_pixels(model.config, batch).to(model.dtype)}
    if type(model).__name__.endswith("Classification"):
        inputs["labels"] = torch.arange(batch) % model.config.num_labels
    elif type(model).__name__.endswith("ForPreTraining"):
        inputs["noise"] = random_noise(model.config, batch)
    else:
        inputs["bool_masked_pos"] = random_mask(model.config, batch)
    return inputs

"""The fields of a `Dossier`, which tells the test suites of one architecture, and data that several of them share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch

# ("constant", value), ("table", function of the shape), ("normal", standard deviation) or ("uniform", bound).
Distribution = tuple[Literal["constant", "table", "normal", "uniform"], Any]
# Reads an output of a golden case: takes our classifier, its outputs, and those of its base model with hidden states.
ReadOutput = Callable[[Any, Any, Any], torch.Tensor]


class Initialisation(NamedTuple):
    """
    What a new model starts from.

    Args:
        parameters: Pattern to the distribution of the parameters in whose name it is found; the first match counts.
        fields: Fields of the tiny configuration that are replaced. They give parameters enough values to tell a
            distribution by; `hidden_size=WIDTH` and `num_labels=64` come by themselves where there is a `hidden_size`.
    """

    parameters: dict[str, Distribution]
    fields: dict[str, Any] = {}


class TimmGroups(NamedTuple):
    """
    A model of timm's that groups its parameters by depth as ours does.

    Args:
        model: Its name in timm.
        arguments: Its arguments.
        held_together: What one group of timm's holds, where ours are smaller.
        apart: A part of our names. These parameters are compared by themselves: timm counts them from another start.
    """

    model: str
    arguments: dict[str, Any] = {}
    held_together: str | None = None
    apart: str | None = None


@dataclass(frozen=True, kw_only=True)
class Dossier:
    """
    All that the suites know of one architecture. `tests/architectures/<name>.py` holds it as `DOSSIER`. A plain
    architecture gives the first four fields; the others say what is particular to it.

    Args:
        tiny: Case to the fields of a tiny configuration. A case is the name of the architecture, or that name, "-" and
            an option. Together the cases reach every branch of the model. Costly tests run the plain case only.
        initialisation: Case to what a new model starts from: the plain case, and options that start otherwise.
        parity: A bound on the difference of float64 logits from the original's over all golden cases, relative to the
            largest logit. The README shows it.
        cifar10: A variant and the fields that make it small, for the README's table of CIFAR-10. Images have 32 x 32
            pixels unless `image_size` is given. `None` where no variant takes images.
        speed: Variant to the libraries that have the same model, for the README's table of speed and memory.
        more_goldens: Folders of `tests/goldens` that it runs besides the one with its own name.
        outputs: Name of an output in its golden cases to what reads it. It comes before `test_goldens.OUTPUTS`.
        coarser: Name of an output to the factor by which its float32 values may stray further.
        has_variants: Whether anybody published trained models.
        untrained: Suffix of a class, or "*" for every class, to a pattern of the parameters that cannot change its loss
            in training: their gradient is rounding.
        mixes_heads: Whether the maps of the heads are mixed after the softmax, so that rows may have any sum.
        own_maps: Heads whose attention layers all compute their own maps, so that no implementation takes them over.
        without_time: Cases that look at each frame by itself.
        onnx_at_any_size: Whether the ONNX file of `torch.onnx.export(dynamo=True)` is right at every input size, or is
            refused at others. A trial takes long: `None`, not tried, is right for nearly all.
        without_vmap: Whether PyTorch cannot map it over its weights.
        fixed_sizes: Fields that fine-tuning refuses to change, since a table of relative positions is as large as the
            map and is resized at call time only.
        size_is_function: Fields whose change makes another function, with no table to resize.
        composite_fields: Name of a composite of `test_composites.py` to the fields that it needs otherwise.
        pooling: Beginning of the names of the parameters that only `pooler_output` is made of.
        timm_groups: Models of timm's with the same groups of parameters.
        not_applicable: Test of transformers' own suite to the reason why it cannot apply: what it asserts, and what
            holds instead.
    """

    tiny: dict[str, dict[str, Any]]
    initialisation: dict[str, Initialisation]
    parity: float
    cifar10: tuple[str, dict[str, Any]] | None = None
    speed: dict[str, list[str]] = field(default_factory=dict)
    more_goldens: tuple[str, ...] = ()
    outputs: dict[str, ReadOutput] = field(default_factory=dict)
    coarser: dict[str, float] = field(default_factory=dict)
    has_variants: bool = True
    untrained: dict[str, str] = field(default_factory=dict)
    mixes_heads: bool = False
    own_maps: tuple[str, ...] = ()
    without_time: tuple[str, ...] = ()
    onnx_at_any_size: bool | None = None
    without_vmap: bool = False
    fixed_sizes: tuple[str, ...] = ()
    size_is_function: tuple[str, ...] = ()
    composite_fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    pooling: str | None = None
    timm_groups: tuple[TimmGroups, ...] = ()
    not_applicable: dict[str, str] = field(default_factory=dict)


# Tiny configurations, of images and of clips.
PLAIN = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "num_labels": 5,
}
CLIP = {**PLAIN, "num_frames": 4, "drop_path_rate": 0.0}

# Fields of small models for CIFAR-10.
CIFAR10_PLAIN = {
    "patch_size": 4,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "mlp_ratio": 2,
}
CIFAR10_PYRAMID = {"patch_size": 2, "hidden_sizes": [32, 64, 128], "depths": [2, 2, 2], "num_heads": [1, 2, 4]}

# Arguments of small models of timm's.
TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}

# Width of the models whose initialisation is tested, and the number of values in a patch of `PLAIN`.
WIDTH, FAN_IN = 128, 8 * 8 * 3
# Distributions that several share. Sources: google-research/vision_transformer@c6de1e5 vit_jax/models_vit.py with
# flax's defaults; facebookresearch/deit@7e160fe models.py with timm 0.3.2, and models_v2.py.
NORMS: dict[str, Distribution] = {r"norm.*\.weight$": ("constant", 1.0), r"norm.*\.bias$": ("constant", 0.0)}
TRUNC_NORMAL: dict[str, Distribution] = {
    **NORMS,
    r"patch_embeddings\.": ("uniform", FAN_IN**-0.5),
    r"layer_scale": ("constant", 0.1),
    r"bias$": ("constant", 0.0),
    r"(weight|token)$": ("normal", 0.02),
}
JAX: dict[str, Distribution] = {
    **NORMS,
    r"patch_embeddings.*weight$": ("normal", FAN_IN**-0.5),
    r"qkv\.weight$": ("uniform", (6 / (2 * WIDTH)) ** 0.5),
    r"proj\.weight$": ("uniform", (6 / (2 * WIDTH)) ** 0.5),
    r"fc.\.weight$": ("uniform", (6 / (3 * WIDTH)) ** 0.5),
    r"fc.\.bias$": ("normal", 1e-6),
    r"pre_logits\.weight$": ("normal", WIDTH**-0.5),
    r"position_embeddings|register_tokens": ("normal", 0.02),
    r"cls_token|bias$|classifier": ("constant", 0.0),
}

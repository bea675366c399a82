"""LocalViT on the body of PVT: the original .pth files."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..conversion.convert import Layout, Source, fields_from_kwargs, make_config
from ..conversion.rules import Rule
from ..modeling.configuration_localvit_pvt import VitfLocalvitPvtConfig
from .convert_localvit import COMMIT, DEPTHWISE, INNER, pyramid_fields, with_feed_forward
from .convert_pvt import LAYOUTS as PVT_LAYOUTS
from .convert_pvt import OPEN, PYRAMID_FIXED, PYRAMID_KWARGS, original_shapes
from .convert_pvt import rules as pvt_rules

SOURCE = Source("ofsoundof/LocalViT", COMMIT, "models/localvit_pvt.py", "mit")
_BLOCK = "block{s+1}.{i}."
_NAMES = {"norm": "norm1.weight", "width": {"norm1.weight": 0, "norm1.bias": 0}, "inner": INNER}


def rules(config: VitfLocalvitPvtConfig) -> list[Rule]:
    """The table of the published `.pth` files."""
    return with_feed_forward(pvt_rules(config), config, _BLOCK, "stages.{s}.layers.{i}.")


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfLocalvitPvtConfig:
    """
    The configuration of a LocalViT-PVT checkpoint. Numbers of heads come from `kwargs`, or from the published variant
    with the same shapes; the image size from the first stage's positions, if they are square.

    Args:
        kwargs: Keyword arguments of `LocalViT_PVT`; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    shapes = original_shapes(state_dict, _NAMES)
    blocks = [f"block{stage + 1}.0." for stage in range(len(shapes["depths"]))]
    known, ask_for = pyramid_fields(blocks, state_dict)
    given = fields_from_kwargs(kwargs, PYRAMID_KWARGS, PYRAMID_FIXED)
    return make_config(VitfLocalvitPvtConfig, shapes, known, given, ask_for={**OPEN, **ask_for}, **overrides)


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=(*PVT_LAYOUTS["original"].requires, _BLOCK + DEPTHWISE),
        suffix=".pth",
        wrapper="model",
    ),
}

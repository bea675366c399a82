"""LocalViT on the body of Swin: the original .pth files."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..conversion.convert import Layout, Source, fields_from_kwargs, make_config
from ..conversion.rules import Rule
from ..modeling.configuration_localvit_swin import VitfLocalvitSwinConfig
from .convert_localvit import COMMIT, DEPTHWISE, INNER, pyramid_fields, with_feed_forward
from .convert_swin import BLOCK, FIXED, KWARGS, LAYER, OPEN, original_shapes
from .convert_swin import LAYOUTS as SWIN_LAYOUTS
from .convert_swin import rules as swin_rules

SOURCE = Source("ofsoundof/LocalViT", COMMIT, "models/localvit_swin.py", "mit")
_NAMES = {"width": {"norm1.weight": 0, "attn.proj.bias": 0}, "inner": INNER}


def rules(config: VitfLocalvitSwinConfig) -> list[Rule]:
    """The table of the published `.pth` files."""
    return with_feed_forward(swin_rules(config), config, BLOCK, LAYER)


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfLocalvitSwinConfig:
    """
    The configuration of a LocalViT-Swin checkpoint. Shapes tell all but an image that is not square, or whose size
    leaves no trace.

    Args:
        kwargs: Keyword arguments of `LocalViT_swin`; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    shapes = original_shapes(state_dict, _NAMES)
    blocks = [f"layers.{stage}.blocks.0." for stage in range(len(shapes["depths"]))]
    known, ask_for = pyramid_fields(blocks, state_dict)
    given = fields_from_kwargs(kwargs, {**KWARGS, "qk_scale": "qk_scale"}, FIXED)
    return make_config(VitfLocalvitSwinConfig, shapes, known, given, ask_for={**OPEN, **ask_for}, **overrides)


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=(*SWIN_LAYOUTS["original"].requires, BLOCK + DEPTHWISE),
        suffix=".pth",
        wrapper="model",
    ),
}

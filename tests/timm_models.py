"""timm's published names of the classes that this library has, and small models of them as they lie on the Hub."""

import functools
import importlib
import inspect
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from models import randomise
from timm.models import _registry
from timm.models._hub import save_for_hf

from hf_vit_family.conversion.timm_source import timm_model
from hf_vit_family.conversion_scripts.timm_variants import timm_vit_arguments
from hf_vit_family.errors import ConversionError

# Classes of timm's that this library has, and others whose names a reader could take for one of them.
CLASSES = (
    *("VisionTransformer", "VisionTransformerDistilled", "Cait", "ConVit", "CrossVit", "PoolingVisionTransformer"),
    *("LevitDistilled", "Nest", "SwinTransformer", "SwinTransformerV2", "Twins", "PyramidVisionTransformerV2"),
    *("MaxxVit", "MultiScaleVit", "TNT", "SwinTransformerV2Cr", "VisionTransformerRelPos", "VisionTransformerSAM"),
)
FOREIGN = ("Eva", "Beit", "Xcit", "VOLO", "CoaT", "NaFlexVit", "Hiera", "DaVit", "FocalNet", "TinyVit")


class _Intercepted(Exception):
    def __init__(self, model_class: type, arguments: dict[str, Any]):
        super().__init__(model_class)
        self.model_class, self.arguments = model_class, arguments


def _intercept(model_class, variant, pretrained, model_cfg=None, feature_cfg=None, pretrained_filter_fn=None, **kwargs):
    raise _Intercepted(model_class, kwargs)


@functools.cache
def entry(name: str) -> tuple[str, dict[str, Any]]:
    """The class that timm builds for a name, and the arguments that the function of that name passes to it."""
    function = _registry._model_entrypoints[name]
    module = importlib.import_module(function.__module__)
    with mock.patch.object(module, "build_model_with_cfg", _intercept):
        try:
            function()
        except _Intercepted as found:
            return getattr(found.model_class, "__name__", ""), found.arguments
    raise AssertionError(f"{name} builds nothing")


def _published() -> list[str]:
    modules = {}
    names = dict.fromkeys(each.partition(".")[0] for each in timm.list_pretrained())
    for name in names:
        module = importlib.import_module(_registry._model_entrypoints[name].__module__)
        modules.setdefault(module, []).append(name)
    wanted = {*CLASSES, *FOREIGN}
    kept = []
    for module, own in modules.items():
        classes = {each for each, value in vars(module).items() if inspect.isclass(value)}
        if classes & wanted and hasattr(module, "build_model_with_cfg"):
            kept += own
    return kept


NAMES = [name for name in _published() if entry(name)[0] in CLASSES]
FOREIGN_NAMES = [name for name in _published() if entry(name)[0] in FOREIGN]


def refusal(name: str) -> str | None:
    """The sentence with which a name is refused as another family's; `None` for those of this library."""
    try:
        timm_model({"architecture": name})
    except ConversionError as error:
        return str(error)
    return None


def cut(name: str) -> dict[str, Any] | None:
    """Arguments that make a small model of a name, whose heads, ratios and kinds stay; `None` where timm takes none."""
    model_class, arguments = entry(name)
    heads = arguments.get("num_heads", arguments.get("heads"))
    if model_class in ("VisionTransformer", "VisionTransformerDistilled"):
        hybrid = timm_vit_arguments(name)["resnet"]
        patch = arguments.get("patch_size", 16) * (1 if hybrid is None else 4 if not hybrid else 2 ** (len(hybrid) + 1))
        odd = 6 if name.startswith("vit_so400m_patch14_siglip") and name.endswith("_384") else 0
        return {"embed_dim": heads * 4, "depth": 2, "img_size": 2 * patch + odd}
    if name == "crossvit_18_240":  # its function takes no argument twice
        return None
    if model_class == "CrossVit":
        return {"embed_dim": [16 * each for each in heads], "depth": [[1, 1, 0]] * 3}
    if model_class in ("SwinTransformer", "SwinTransformerV2"):
        return {"embed_dim": 8 * heads[0], "depths": [2, 2, 2, 2]}
    if model_class in ("Twins", "PyramidVisionTransformerV2"):
        return {"embed_dims": [8 * each for each in heads], "depths": [2, 2, 2, 2]}
    return {
        "Cait": {"embed_dim": 4 * (heads or 0), "depth": 2, "img_size": 32} if model_class == "Cait" else None,
        "ConVit": {"embed_dim": 4, "depth": 11, "img_size": 32},
        "PoolingVisionTransformer": {"base_dims": [8, 8, 8], "depth": [1, 1, 1]},
        "LevitDistilled": {"depth": [1, 1, 1]},
        "MaxxVit": {"depths": [1, 1, 2, 1]},
    }.get(model_class)


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter and every statistic random, in float64 and evaluation mode."""
    randomise(model)
    generator = torch.Generator().manual_seed(1)
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
        elif key.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.double().eval()


def hub_folder(name: str, folder: Path, **arguments: Any) -> torch.nn.Module:
    """A random model of a name, written into `folder` as timm writes what it puts on the Hub."""
    model = randomised(timm.create_model(name, **arguments))
    save_for_hf(model, folder, safe_serialization=True)
    return model


# Of each class one that is small enough to be built whole; of those whose functions take no sizes, all that can be.
_WHOLE = (
    *(
        "vit_tiny_patch16_224",
        "test_vit",
        "test_vit2",
        "test_vit3",
        "deit_tiny_distilled_patch16_224",
        "cait_xxs24_224",
    ),
    *(
        "convit_tiny",
        "crossvit_9_240",
        "crossvit_18_240",
        "pit_ti_224",
        "levit_128s",
        "levit_conv_128s",
        "nest_tiny_jx",
    ),
    *("swin_s3_tiny_224", "swinv2_tiny_window8_256", "twins_pcpvt_small", "pvt_v2_b0", "coatnet_nano_rw_224"),
    *("mvitv2_tiny", "mvitv2_base_cls"),
)


def small_names() -> list[str]:
    """Names whose models are built as they are."""
    return [name for name in _WHOLE if name in NAMES]

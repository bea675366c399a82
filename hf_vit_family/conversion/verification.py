"""
Whether a converted model computes what the checkpoint's own library computes: what `vit-family convert --verify` asks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ConversionError, UserError
from ..loading import quiet_loading
from ..modeling.mae_decoder import fixed_noise
from ..registry import Architecture, get_architecture
from .checkpoint_files import CheckpointFile
from .convert import ConversionReport
from .parity import Parity, compare
from .peers import create_peer

# Largest difference in float64 that counts as equal, relative to the outputs. Tables that a library keeps in float32
# cost 1e-7.
TOLERANCE = 1e-6
# Outputs of a model without logits that libraries have in common.
_FEATURES = ("pooler_output", "last_hidden_state")


@dataclass(frozen=True)
class Verification:
    """
    A converted model compared with the model of another library.

    Args:
        difference: Largest difference of the outputs, relative to their largest magnitude; `None` if nothing was
            compared.
        method: What was compared with what; or else why nothing was.
    """

    difference: float | None
    method: str


class NotComparedError(UserError):
    """There is nothing to compare with. The message says why."""


def _from_timm(file: CheckpointFile) -> nn.Module:
    import timm

    return timm.create_model(f"local-dir:{file.path.parent}", pretrained=True)


def _run_mae(model: nn.Module, pixel_values: Tensor):
    """
    transformers' ViTMAEForPreTraining with the mask that ours has in evaluation mode, and ViTMAEModel without what it
    does for pre-training: it keeps all patches, in their order.
    """
    patches = model.base_model.embeddings.patch_embeddings.num_patches
    noise = fixed_noise(patches, pixel_values.device)
    if model.base_model is model:
        model.config.mask_ratio, noise = 0.0, torch.arange(patches)[None]
    return model(pixel_values, noise=noise.expand(len(pixel_values), -1))


def _run_frame_by_frame(model: nn.Module, pixel_values: Tensor):
    """
    transformers' TimeSformer, whose encoder gives the frames of a patch one after the other, with the tokens in our
    order.
    """
    outputs = model(pixel_values)
    if "last_hidden_state" in outputs:
        token, patches = outputs.last_hidden_state.split([1, outputs.last_hidden_state.shape[1] - 1], dim=1)
        frames = patches.unflatten(1, (-1, pixel_values.shape[1])).transpose(1, 2)
        outputs["last_hidden_state"] = torch.cat((token, frames.flatten(1, 2)), dim=1)
    return outputs


def _run_to_tokens(model: nn.Module, pixel_values: Tensor):
    """transformers' PVT v2, whose encoder gives a map, with its cells as tokens."""
    outputs = model(pixel_values)
    if "last_hidden_state" in outputs:
        outputs["last_hidden_state"] = outputs.last_hidden_state.flatten(2).mT
    return outputs


# How models of transformers are run that do more than others, or order what they give otherwise, by model type.
_RUNS = {"vit_mae": _run_mae, "timesformer": _run_frame_by_frame, "pvt_v2": _run_to_tokens}


class _Run(nn.Module):
    """A model that is run by a function of the model and its input."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Tensor], Any]):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, pixel_values: Tensor):
        return self.function(self.model, pixel_values)


def _from_transformers(file: CheckpointFile) -> nn.Module:
    names = file.metadata.get("architectures") or ["none"]
    model_class = getattr(transformers, names[0], None)
    if model_class is None:
        raise NotComparedError(f"transformers has no class {names[0]!r}, which config.json names")
    model = model_class.from_pretrained(file.path.parent, dtype=torch.float64, trust_remote_code=False)
    if model.config.model_type in _RUNS:
        return _Run(model, _RUNS[model.config.model_type])
    # Of a model of images and texts, what was converted is the encoder of images.
    return model if hasattr(model, "classifier") else getattr(model, "vision_model", model)


def _timm_of_the_same_names(
    file: CheckpointFile, model: PreTrainedModel, architecture: Architecture
) -> Callable[[], nn.Module]:
    """
    timm's model of this configuration, which takes the checkpoint if its tensors have the names that timm gives them.
    """
    layout = architecture.conversion.LAYOUTS.get("timm")
    if layout is None or layout.native_config is None or (layout.misfit(model.config) is not None):
        raise NotComparedError(f"no installed library has {architecture.name} with tensors of these names")
    native = layout.native_config(model)

    def make() -> nn.Module:
        import timm

        peer = timm.create_model(native["architecture"], **native["model_args"])
        peer.load_state_dict(file.state_dict, strict=True)
        return peer

    return make


def find_peer(
    file: CheckpointFile, model: PreTrainedModel, report: ConversionReport
) -> tuple[str, Callable[[], nn.Module]]:
    """
    The library that has the model of a checkpoint, and what loads it there.

    A folder of timm's or transformers' form is loaded by that library itself. Other files are given to timm, or to
    vit-pytorch for what is converted from it, where their tensors have its names.

    Raises:
        NotComparedError: if no library has it.
    """
    architecture = get_architecture(report.architecture)
    if file.is_timm:
        return "timm", lambda: _from_timm(file)
    if "model_type" in file.metadata:
        return "transformers", lambda: _from_transformers(file)
    source = architecture.conversion.LAYOUTS[report.layout].source or architecture.conversion.SOURCE
    if source.repository == "lucidrains/vit-pytorch":

        def make() -> nn.Module:
            peer = create_peer("vit_pytorch", architecture.name, architecture.name, model.config)
            peer.load_state_dict(file.state_dict, strict=True)
            return peer

        return "vit-pytorch", make
    return "timm", _timm_of_the_same_names(file, model, architecture)


def _outputs(model: nn.Module, pixel_values: Tensor, is_headless: bool) -> dict[str, Tensor]:
    outputs = model(pixel_values)
    if isinstance(outputs, Tensor):  # of timm and vit-pytorch
        return {"pooler_output" if is_headless else "logits": outputs}
    return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}


def relative_difference(parity: Parity) -> float:
    """The largest difference of all outputs, each relative to its scale. NotComparedError if all outputs are zero."""
    if not any(parity.scales.values()) and not any(parity.differences.values()):
        raise NotComparedError("all outputs are zero, which says nothing")
    ratios = [
        difference / parity.scales[name] if parity.scales[name] else difference and float("inf")
        for name, difference in parity.differences.items()
    ]
    return next((ratio for ratio in ratios if ratio != ratio), max(ratios))  # what is not a number is no small one


def verify_conversion(file: CheckpointFile, model: PreTrainedModel, report: ConversionReport) -> Verification:
    """
    Runs a converted model and the same checkpoint in its own library on two random images or clips of the model's size,
    in float64, and compares the logits, or else the features.

    Args:
        file: The checkpoint. model: What it was converted to; it is in float64 afterwards. report: Of that conversion.

    Raises:
        UserError: if the outputs differ by more than `TOLERANCE`.
    """
    try:
        library, make = find_peer(file, model, report)
        name = library
        try:
            name = f"{library} {version(library)}"
            with quiet_loading():
                peer = make().double().eval()
        except ImportError as error:
            raise NotComparedError(f"{library} is not installed") from error
        except (RuntimeError, ValueError, OSError, TypeError, KeyError) as error:
            if isinstance(error, NotComparedError):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise NotComparedError(f"{name} does not load it ({reason})") from error
        shape = (2, *model.config.input_shape)
        pixel_values = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        is_headless = model.base_model is model
        with torch.no_grad():
            ours = _outputs(model.double().eval(), pixel_values, is_headless)
            try:
                theirs = _outputs(peer, pixel_values, is_headless)
            except (RuntimeError, ValueError, AssertionError) as error:
                reason = str(error).strip().splitlines()[0]
                raise UserError(f"--verify: {name} does not take input of {shape[1:]} ({reason})") from error
        names = next(([name] for name in ("logits", "reconstruction") if name in ours), _FEATURES)
        both = [key for key in names if key in ours and key in theirs and ours[key].shape == theirs[key].shape]
        if not both:
            raise NotComparedError(f"the model of {name} has other outputs ({', '.join(theirs)})")
        difference = relative_difference(
            compare({key: ours[key] for key in both}, {key: theirs[key] for key in both}, TOLERANCE)
        )
    except (NotComparedError, ConversionError) as error:
        return Verification(None, str(error))
    size = " x ".join(map(str, shape[1:]))
    if not difference <= TOLERANCE:
        raise UserError(
            f"--verify: {' and '.join(both)} differ from those of {name} by {difference:.1e} of their scale, more than "
            f"{TOLERANCE:.0e}; nothing is written"
        )
    return Verification(difference, f"{' and '.join(both)} of two random inputs of {size} in float64, {name}")

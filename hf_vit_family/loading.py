"""
Models and processors of folders and Hub ids, with their errors in one line.

`load_classifier` and `load_encoder` take whatever transformers can load; `load_saved_model` and `load_saved_processor`
a folder of this library. A model to fine-tune also gets a head and other fields: `training/setup.py`.
"""

import contextlib
import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RemoteEntryNotFoundError
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, BaseImageProcessor, PreTrainedModel
from transformers.utils import logging

from .errors import UserError
from .hub import check_revision
from .modeling.configuration_vitf import VitfConfig, pair
from .notices import listed, notice
from .refusals import LOADING_ERRORS, HttpError, hub_reason, loading_reason, refusal
from .registry import ARCHITECTURES, CLIPS, IMAGES, Modality, get_architecture, modality_of
from .variants import create_model, create_processor, list_variants


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars, and no report of the weights that one head has and another lacks."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _has_file(model: str, name: str, revision: str | None) -> bool:
    """Whether a folder, or else a repository on the Hub, has a file. Raises UserError if there is neither."""
    if Path(model).is_dir():
        return (Path(model) / name).is_file()
    try:
        hf_hub_download(model, name, revision=revision)
    except HFValidationError as error:
        raise UserError(f"{model}: no such folder") from error
    except RemoteEntryNotFoundError:
        return False
    except (LocalEntryNotFoundError, HttpError, OSError) as error:
        raise UserError(f"{model}: no such folder, and {hub_reason(error) or refusal(error)}") from error
    return True


def _load(auto_class: type[Any], model: str, revision: str | None, trust_remote_code: bool, **options: Any) -> Any:
    try:
        with quiet_loading():
            return auto_class.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code, **options)
    except LOADING_ERRORS as error:
        raise UserError(f"cannot load {model}: {loading_reason(error)}") from error


def _check_shapes(model: str, info: dict[str, Any]) -> None:
    """UserError for a weight of another shape than the configuration says."""
    if info["mismatched_keys"]:
        key, found, expected = min(info["mismatched_keys"])
        raise UserError(f"{model}: {key} is {tuple(found)}, but config.json makes it {tuple(expected)}")


def _place(model: Any, device: str) -> PreTrainedModel:
    """A model in evaluation mode on a device. UserError where there is no such device."""
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # an unknown name, no such device, torch built without it
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from error


def load_classifier(
    model: str, device: str, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    An image or video classifier in evaluation mode on a device, and its processor, which says what it classifies.

    Args:
        model: A folder or a Hub id.
        device: A name that `torch.device` knows.
        revision: Branch, tag or commit of a model on the Hub.
        trust_remote_code: Whether Python code that comes with the model may run.

    Raises:
        UserError: if the configuration, a weight, the processor or the device is missing or broken.
    """
    modality = _modality(model, revision)
    return _load_both(
        modality, modality.auto_classifier, "is no trained classifier", model, device, revision, trust_remote_code
    )


def load_autoencoder(
    model: str, device: str, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    A `...ForPreTraining` of images, which completes what was hidden of them, in evaluation mode on a device, and its
    processor. Arguments and errors as in [`load_classifier`].
    """
    modality = _modality(model, revision)
    config = _load(AutoConfig, model, revision, trust_remote_code)
    if config.model_type not in {each.model_type for each in ARCHITECTURES.values() if "ForPreTraining" in each.heads}:
        raise UserError(f"{model} is a {type(config).__name__}, of which no model draws what was hidden of an image")
    return _load_both(
        modality,
        AutoModelForPreTraining,
        "draws no hidden patches, as what vit-family train --objective mae makes does",
        model,
        device,
        revision,
        trust_remote_code,
    )


def _modality(model: str, revision: str | None) -> Modality:
    """What a folder or Hub id takes, by the file of its processor."""
    check_revision("--revision", revision, model, on_hub=not Path(model).exists())
    if not _has_file(model, "config.json", revision):
        raise UserError(f"{model} is not a model: it has no config.json")
    modality = next((each for each in (IMAGES, CLIPS) if _has_file(model, each.file, revision)), None)
    if modality is None:
        raise UserError(f"{model} has no {IMAGES.file}; create_processor(VARIANT).save_pretrained(FOLDER) writes it")
    return modality


def _load_both(
    modality: Modality,
    auto_class: type[Any],
    fault: str,
    model: str,
    device: str,
    revision: str | None,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    A model of a class on a device, and its processor.

    Args:
        fault: What is said of it where weights are missing.
    """
    processor = _load(modality.auto_processor, model, revision, trust_remote_code)
    loaded, info = _load(
        auto_class,
        model,
        revision,
        trust_remote_code,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    _check_shapes(model, info)
    if info["missing_keys"]:
        raise UserError(f"{model} {fault}: it has no weights for {min(info['missing_keys'])}")
    return _place(loaded, device), processor


@dataclass(frozen=True)
class Encoder:
    """
    A model without its heads, and how an image or clip becomes one vector.

    Args:
        model: In evaluation mode, on its device.
        processor: Says whether it takes images or clips.
        pooling: `"model"`: its `pooler_output`. `"mean"`: the mean of its last tokens, those of the patches where it
            can tell which these are.
        weights: Where they come from, in words.
    """

    model: PreTrainedModel
    processor: BaseImageProcessor
    pooling: str
    weights: str

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Features (B, C) in float32 of images (B, num_channels, H, W), or of clips (B, T, num_channels, H, W).

        Raises:
            UserError: if they are not finite.
        """
        outputs = self.model(pixel_values.to(self.model.device, self.model.dtype))
        features = (
            outputs.pooler_output if self.pooling == "model" else self._mean(outputs.last_hidden_state, pixel_values)
        )
        features = features.flatten(1).float()
        if not features.isfinite().all():
            raise UserError("the model's features are not finite: its weights are broken, or its precision is too low")
        return features

    def _mean(self, hidden_states: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        feature_map = getattr(self.model, "feature_map", None)
        if pixel_values.ndim == 4 and feature_map is not None:
            hidden_states = feature_map(hidden_states, *pixel_values.shape[-2:])
        if hidden_states.ndim == 4 and pixel_values.ndim == 4:
            return hidden_states.mean((2, 3))
        return hidden_states.flatten(1, -2).mean(1)


def load_encoder(
    model: str,
    device: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    pooling: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Encoder:
    """
    The encoder of a folder or Hub id, whatever head it was saved with, or a variant with random weights.

    Where `pooling` is not given, features are what the model's own classifiers read, `pooler_output`: the class token
    after the last norm, or the mean of the tokens, as the docstring of each base model says. Some layers that make it
    (of CaiT, CCT, CoAtNet, CrossViT, PVT, RegionViT) are not learnt by objectives that have no use for it: where a
    folder has no weights for these, tokens are averaged, and a notice says so.

    Args:
        overrides: Fields that replace those of the variant. seed: Of a variant's random weights.

    Raises:
        UserError: as `load_classifier`, or for overrides of a model that is no variant.
    """
    if model in list_variants():
        return _random_encoder(model, device, pooling or "model", dict(overrides or {}), seed)
    if overrides:
        raise UserError(f"fields can be set of a variant only: {model} has its weights for those that it has")
    near = difflib.get_close_matches(model, list_variants(), n=1, cutoff=0.9)
    if near and not Path(model).exists():  # no name of OWNER/NAME is that near: the Hub need not be asked
        raise UserError(f"{model}: no such folder or variant; did you mean {near[0]!r}?")
    processor = _load(_modality(model, revision).auto_processor, model, revision, trust_remote_code)
    encoder, info = _load(
        AutoModel, model, revision, trust_remote_code, output_loading_info=True, ignore_mismatched_sizes=True
    )
    _check_shapes(model, info)
    missing = set(info["missing_keys"])
    if missing:
        encoder, pooling = _without_pooling_layer(model, revision, encoder, missing, pooling)
    if pooling is None:
        pooling = "model" if getattr(encoder.config, "pooler_output_size", None) or _pools(encoder) else "mean"
    return Encoder(_place(encoder, device), processor, pooling, "as saved")


def _pools(encoder: PreTrainedModel) -> bool:
    """Whether a model of transformers has a layer that makes `pooler_output`."""
    return getattr(encoder, "pooler", None) is not None


def _random_encoder(name: str, device: str, pooling: str, overrides: dict[str, Any], seed: int) -> Encoder:
    fields: dict[str, Any] = {}
    if "image_size" in overrides:
        height, width = pair(overrides["image_size"])
        fields["size"] = {"height": height, "width": width}
    if "num_frames" in overrides:
        fields["num_frames"] = overrides["num_frames"]
    processor: Any = create_processor(name, **fields)
    torch.manual_seed(seed)
    model = create_model(name, "Model", **overrides)
    if model.config.num_channels != len(processor.image_mean):
        raise UserError(
            f"num_channels={model.config.num_channels} does not fit: the processor's image_mean prepares images of "
            f"{len(processor.image_mean)} channels"
        )
    return Encoder(_place(model, device), processor, pooling, f"random, seed {seed}")


def _without_pooling_layer(
    name: str, revision: str | None, encoder: PreTrainedModel, missing: set[str], pooling: str | None
) -> tuple[PreTrainedModel, str]:
    """
    The encoder of a folder that lacks some of its weights, if it lacks only what makes `pooler_output`; and `"mean"`.
    UserError otherwise, or where the user asked for that output.
    """
    if encoder.config.model_type.startswith("vitf_"):
        backbone: Any = get_architecture(encoder.config.model_type).model_class("Backbone")
        with quiet_loading():
            loaded = backbone.from_pretrained(
                name, revision=revision, output_loading_info=True, trust_remote_code=False
            )
        bare, wanting = loaded[0].base_model, loaded[1]["missing_keys"]
    else:
        bare, wanting = encoder, {key for key in missing if not key.startswith("pooler.")}
    if wanting:
        raise UserError(f"{name} is no trained model: it has no weights for {min(wanting)}")
    if pooling == "model":
        raise UserError(f"{name} has no weights for {min(missing)}, which makes its pooled output: choose pooling mean")
    notice(f"{name} has no weights for {listed(sorted(missing), 4)}: its features are the means of its last tokens")
    return bare, "mean"


def load_saved_model(folder: str | Path) -> PreTrainedModel:
    """
    The model of a folder, as the class that it was saved from and in the dtype that it was saved in.

    Raises:
        UserError: if the folder is none of this library's models, or its weights do not fit its configuration.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type, saved_as = config["model_type"], (config.get("architectures") or [""])[0]
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not a model folder: it has no config.json") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / 'config.json'} is not the configuration of a model: {error!r}") from error
    try:
        architecture = get_architecture(model_type)
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'}: {error}; 'vit-family convert' makes a folder to publish") from error
    head = saved_as.removeprefix(architecture.prefix)
    if head not in architecture.heads:
        raise UserError(f"{folder / 'config.json'}: architectures names no class of {architecture.name}: {saved_as!r}")
    try:
        with quiet_loading():
            loaded: Any = architecture.model_class(head).from_pretrained(
                folder,
                dtype="auto",
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
            )
    except LOADING_ERRORS as error:
        raise UserError(f"{folder}: {loading_reason(error)}") from error
    model, info = loaded
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            name = min(key if isinstance(key, str) else key[0] for key in info[problem])  # (key, shape, shape)
            raise UserError(f"{folder}: its weights do not fit its config.json: {problem.replace('_', ' ')}, {name}")
    return model


def load_saved_processor(folder: str | Path, config: VitfConfig):
    """The processor of a model folder with this configuration; UserError where it has none."""
    modality = modality_of(config)
    file = Path(folder) / modality.file
    if not file.is_file():
        raise UserError(f"{folder} has no {file.name}; create_processor(VARIANT).save_pretrained(FOLDER) writes it")
    try:
        return modality.auto_processor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise UserError(f"{file}: {loading_reason(error)}") from error

"""Model folders of converted checkpoints, and of published checkpoints by their name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..conversion.checkpoint_files import CheckpointFile, read_checkpoint
from ..conversion.convert import ConversionReport, convert_checkpoint, original_source
from ..conversion.download import cache_folder, download_published
from ..conversion.preprocessing import find_preprocessing
from ..conversion.published import published_checkpoints
from ..conversion.verification import verify_conversion
from ..errors import UserError
from ..files import locked_folder, whole_folder
from ..modeling.configuration_vitf import VitfConfig, unknown_name_message
from ..notices import notice
from ..registry import Architecture, get_architecture
from ..variants import find_variant, make_processor
from .cards import Conversion, hub_id, origin_of

_HUB = "https://huggingface.co/"


def find_published_name(name: str) -> tuple[Architecture, str]:
    """
    The architecture and the full name, `"<variant>.<tag>"`, of a published checkpoint.

    Args:
        name: The same, or only the variant: the first checkpoint of its table is taken, and a notice names the others.

    Raises:
        UserError: with the nearest name, if there is none.
    """
    variant, _, tag = name.partition(".")
    architecture = find_variant(variant)
    known = [key for key in published_checkpoints(architecture.name) if key.partition(".")[0] == variant]
    if not known:
        raise UserError(f"nobody has published weights of {variant} that this library knows")
    if tag and name not in known:
        raise UserError(unknown_name_message("checkpoint", name, known))
    if not tag and len(known) > 1:
        notice(f"{variant}: takes {known[0]}; there are also {', '.join(known[1:])}")
    return architecture, name if tag else known[0]


def read_published(key: str, architecture: Architecture) -> CheckpointFile:
    """Reads a published checkpoint, from the cache if it is there. Errors as in `download_published`."""
    published = published_checkpoints(architecture.name)[key]
    if published.url.startswith(_HUB):
        return read_checkpoint("/".join(published.url.removeprefix(_HUB).split("/")[:2]))
    suffix = next(layout.suffix for name, layout in architecture.conversion.LAYOUTS.items() if "original" in name)
    return read_checkpoint(download_published(key, published, suffix))


def write_converted(
    folder: Path,
    file: CheckpointFile,
    architecture: str | None = None,
    kwargs: dict[str, Any] | None = None,
    layout: str | None = None,
    variant: str | None = None,
    published: str | None = None,
    revision: str | None = None,
    verify: bool = False,
    allow_nonfinite: bool = False,
    **overrides: Any,
) -> tuple[PreTrainedModel, ConversionReport, Conversion]:
    """
    Converts a checkpoint, and writes weights, processor and `conversion.json` into a folder.

    Args:
        folder: An empty folder. file: As `read_checkpoint` returns it.
        architecture, kwargs, layout, variant, allow_nonfinite, overrides: As in `convert_checkpoint`.
        published: Name of the published checkpoint that the file is, where that is known.
        revision: Of the Hub id that the file was read from.
        verify: Whether the model is compared with the checkpoint in its own library.
    """
    model, report = convert_checkpoint(
        file, architecture, kwargs, layout, variant, allow_nonfinite=allow_nonfinite, **overrides
    )
    published = published or report.checkpoint
    preprocessing = find_preprocessing(file, get_architecture(report.architecture), model.config, published)
    model.save_pretrained(folder, save_original_format=False)
    make_processor(preprocessing).save_pretrained(folder)
    facts = _facts(file, report, model.config, published, revision)
    if verify:
        verification = verify_conversion(file, model, report)
        facts = replace(facts, parity=verification.difference, parity_method=verification.method)
    facts.write(folder)
    return model, report, facts


def _facts(
    file: CheckpointFile,
    report: ConversionReport,
    config: VitfConfig,
    published: str | None,
    revision: str | None,
) -> Conversion:
    """Collects what the model card says about the origin of the weights."""
    architecture = get_architecture(report.architecture)
    source = original_source(architecture, config)
    license = file.metadata.get("pretrained_cfg", {}).get("license")
    if published:
        license = published_checkpoints(architecture.name)[published].license
    is_local = Path(report.source).exists()
    if license is None and not Path(report.source).is_file():
        license = origin_of(report.source.partition(":")[0], revision).license
    return Conversion(
        source=f"{source.repository}@{source.commit}",
        file=Path(report.source).name if is_local else report.source,
        sha256=report.sha256,
        layout=report.layout,
        license=license,
        base_model=None if is_local else hub_id(report.source.partition(":")[0]),
    )


def pretrained_folder(name: str) -> Path:
    """
    The folder of a published checkpoint as a model of this library: downloaded and converted once, then from the cache.

    ```python
    folder = pretrained_folder("deit_tiny_patch16_224")
    classifier = pipeline("image-classification", str(folder))
    ```

    Args:
        name: A variant, or `"<variant>.<tag>"`; `vit-family info VARIANT` lists them.

    Raises:
        UserError: if there is no such checkpoint, or it cannot be downloaded: with the address and the place to put it.
        ConversionError: if the file is not what was published.
    """
    architecture, key = find_published_name(name)
    folder = cache_folder() / "models" / key
    if not (folder / Conversion.FILE).is_file():
        with locked_folder(folder.with_name(f"{key}.making")):
            if not (folder / Conversion.FILE).is_file():
                with whole_folder(folder) as made:
                    variant = key.partition(".")[0]
                    write_converted(made, read_published(key, architecture), variant=variant, published=key)
    return folder

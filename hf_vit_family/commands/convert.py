"""
Convert a checkpoint to a model folder of this library, or such a folder back.

SOURCE is a file (.npz, .pth, .pt, .bin, .safetensors), a folder, or a Hub id. Architecture and layout are recognised from
the keys. What a checkpoint does not tell is asked for by name.

examples:
  vit-family convert deit_tiny_patch16_224-a1311bcf.pth --output deit_tiny
  vit-family convert google/vit-base-patch16-224 --output vit_base
  vit-family convert timm/vit_base_patch16_224.augreg_in21k_ft_in1k --output vit_base
  vit-family convert my_vit.pth --architecture vit --set num_attention_heads=5 --output my_vit
  vit-family convert vit_base --to original --output vit_base_original
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ..cards import Conversion, hub_id
from ..checkpoints import CheckpointFile, read_checkpoint, write_checkpoint
from ..conversion import ConversionReport, convert_checkpoint, export_checkpoint, find_layout, original_source
from ..errors import UserError
from ..files import whole_folder, write_text
from ..modeling.configuration_vitf import VitfConfig, unknown_name_message
from ..preprocessing import find_preprocessing, nearest_variant, write_preprocessing
from ..publish import load_model, load_processor
from ..registry import get_architecture
from ..variants import create_processor, find_variant
from .options import add_overrides, read_overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="file, folder, Hub id (owner/name) or owner/name:file")
    parser.add_argument("--output", metavar="DIR", required=True, help="new or empty folder to write")
    parser.add_argument("--architecture", metavar="NAME", help="what the checkpoint is, where its keys fit several")
    parser.add_argument("--layout", metavar="NAME", help="layout of the checkpoint, where its keys fit several")
    parser.add_argument("--variant", metavar="NAME", help="published variant, or VARIANT.TAG, that the checkpoint is")
    parser.add_argument("--kwargs", metavar="JSON", help="keyword arguments of the original constructor, as JSON")
    parser.add_argument("--to", metavar="LAYOUT", help="write a model folder back: original, timm or transformers")
    add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    if args.to is not None:
        given = [name for name in ("architecture", "layout", "variant", "kwargs", "overrides") if getattr(args, name)]
        if given:
            raise UserError(
                f"--{given[0].replace('overrides', 'set')} does not go with --to: the folder says what it is"
            )
        write_back(args.source, args.output, args.to)
    else:
        convert(args)


def read_kwargs(text: str | None) -> dict[str, Any] | None:
    """The JSON object of `--kwargs`. Raises UserError if it is none."""
    if text is None:
        return None
    try:
        kwargs = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"--kwargs is not JSON: {error}") from error
    if not isinstance(kwargs, dict):
        raise UserError("--kwargs: expected a JSON object, as '{\"num_heads\": 3}'")
    return kwargs


def convert(args: argparse.Namespace) -> None:
    """Writes weights, processor and `conversion.json`; the folder appears whole or not at all."""
    architecture, overrides, published = args.architecture, read_overrides(args), None
    if args.variant is not None:
        variant, _, tag = args.variant.partition(".")
        found = find_variant(variant)
        if tag and args.variant not in found.conversion.CHECKPOINTS:
            raise UserError(unknown_name_message("checkpoint", args.variant, found.conversion.CHECKPOINTS))
        if architecture not in (None, found.name):
            raise UserError(f"--variant {variant} is of {found.name}, not of {architecture}")
        row = found.config_class.from_variant(variant).to_dict()
        fields = {name: row[name] for name in found.config_class.VARIANTS[variant] if name in row}
        architecture, overrides, published = found.name, {**fields, **overrides}, args.variant if tag else None
    with whole_folder(args.output) as folder:
        file = read_checkpoint(args.source)
        if str(file.metadata.get("model_type", "")).startswith("vitf_"):
            raise UserError(f"{args.source} is a model folder of this library already; --to LAYOUT writes it back")
        model, report = convert_checkpoint(file, architecture, read_kwargs(args.kwargs), args.layout, **overrides)
        published = published or report.checkpoint
        found = get_architecture(report.architecture)
        preprocessing = find_preprocessing(file, found, model.config, published)
        model.save_pretrained(folder, save_original_format=False)
        create_processor(nearest_variant(model.config), **preprocessing).save_pretrained(folder)
        conversion_facts(file, report, model.config, published).write(folder)
    print(f"{args.output}: {type(model).__name__}, {report.num_parameters:,} parameters")
    print(f"  from {args.source}: {report.architecture}, layout {report.layout}, {report.num_tensors} tensors")
    for note in report.notes:
        print(f"  note: {note}; --architecture decides")


def conversion_facts(
    file: CheckpointFile, report: ConversionReport, config: VitfConfig, published: str | None
) -> Conversion:
    """What the model card says about the origin of the weights."""
    architecture = get_architecture(report.architecture)
    source = original_source(architecture, config)
    license = file.metadata.get("pretrained_cfg", {}).get("license")
    if published:
        license = architecture.conversion.CHECKPOINTS[published].license
    is_local = Path(report.source).exists()
    return Conversion(
        source=f"{source.repository}@{source.commit}",
        file=Path(report.source).name if is_local else report.source,
        sha256=report.sha256,
        layout=report.layout,
        license=license,
        base_model=None if is_local else hub_id(report.source.partition(":")[0]),
    )


def write_back(source: str, output: str, layout: str) -> None:
    """Writes a model folder under another layout's names, in that layout's file type, with the config.json it needs."""
    model = load_model(source)
    facts = Conversion.read(source)
    if facts is not None and facts.layout.startswith(layout + "_"):
        layout = facts.layout  # of an architecture's several originals, the one that it came from
    name, chosen = find_layout(get_architecture(model.config.model_type), model.config, layout)
    with whole_folder(output) as folder:
        path = folder / f"model{chosen.suffix}"
        if chosen.native_config is not None:
            native = chosen.native_config(model)
            preprocessing = write_preprocessing(load_processor(source, model.config), native, folder)
            write_text(folder / "config.json", json.dumps({**native, **preprocessing}, indent=2) + "\n")
        write_checkpoint(export_checkpoint(model, name), path, chosen.wrapper)
    print(f"{Path(output) / path.name}: {type(model).__name__} in the layout {name}")

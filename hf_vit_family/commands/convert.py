"""
Convert a checkpoint to a model folder of this library, or such a folder back.

SOURCE is a file (.safetensors, .npz, .pth, .pt, .bin, .ckpt, .pth.tar, .msgpack), a folder, a Hub id, the address of a
file, or the name of a published checkpoint, as 'vit-family info VARIANT' lists them. What is downloaded stays in a
cache. Architecture and layout are recognised from the keys. What a checkpoint does not tell is asked for by name. Of a
file with several models, as weights and their moving average, one is taken, and a note says how to take another.

--verify runs the result and the same checkpoint in the library that it is of (timm, transformers or vit-pytorch, where
one is installed and has the model) on random input, and fails if they differ. The model card says what was found.

examples:
  vit-family convert deit_small_patch16_224 --output deit_small
  vit-family convert deit_tiny_patch16_224-a1311bcf.pth --output deit_tiny
  vit-family convert google/vit-base-patch16-224 --output vit_base
  vit-family convert timm/vit_base_patch16_224.augreg_in21k_ft_in1k --output vit_base_augreg
  vit-family convert timm/cait_s24_224.fb_dist_in1k --output cait_s24 --verify
  vit-family convert my_vit.pth --architecture vit --set num_attention_heads=5 --output my_vit
  vit-family convert vit_pytorch.pt --set num_attention_heads=16 patch_size=32 --output vit_from_pytorch
  vit-family convert last.ckpt --prefix backbone. --architecture vit --output my_backbone
  vit-family convert checkpoint.pth --wrapper model_ema --output deit_ema
  vit-family convert deit_tiny --to original --output deit_tiny_original
  vit-family convert vit_base_augreg --to timm --output vit_base_timm
  vit-family convert vit_base --to transformers --output vit_base_transformers
"""

import argparse
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..conversion.checkpoint_files import CheckpointFile, read_checkpoint, write_checkpoint
from ..conversion.convert import (
    export_checkpoint,
    find_layout,
    has_head,
)
from ..conversion.download import download
from ..conversion.preprocessing import write_preprocessing
from ..conversion.published import published_checkpoints
from ..conversion.timm_source import is_timm_name, timm_label_names, timm_model
from ..errors import UserError
from ..files import whole_folder, write_text
from ..loading import load_saved_model, load_saved_processor
from ..modeling.configuration_vitf import unknown_name_message
from ..notices import say
from ..publishing.cards import Conversion
from ..publishing.converted import find_published_name, read_published, write_converted
from ..publishing.publish import check_finite
from ..registry import get_architecture
from ..variants import find_variant, list_variants
from .arguments import add_overrides, add_revision, read_overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", help="file, folder, Hub id (owner/name or owner/name:file), address, or name"
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="new or empty folder to write")
    parser.add_argument("--architecture", metavar="NAME", help="what the checkpoint is, where its keys fit several")
    parser.add_argument("--layout", metavar="NAME", help="layout of the checkpoint, where its keys fit several")
    parser.add_argument(
        "--variant", metavar="NAME", help="published variant, VARIANT.TAG, or timm's name: gives every field"
    )
    parser.add_argument(
        "--wrapper", metavar="NAME", help="dictionary to take of a file that nests several, as model_ema"
    )
    parser.add_argument("--prefix", metavar="TEXT", help="module to take of a file that holds several, as 'backbone.'")
    parser.add_argument("--allow-nonfinite", action="store_true", help="convert weights that are NaN or infinite, too")
    parser.add_argument("--kwargs", metavar="JSON", help="keyword arguments of the original constructor, as JSON")
    parser.add_argument(
        "--verify", action="store_true", help="compare the outputs with those of the checkpoint's own library"
    )
    add_revision(parser)
    parser.add_argument(
        "--to", metavar="LAYOUT", help="write a model folder back: original, mae, timm, transformers or vit_pytorch"
    )
    add_overrides(parser)


# Options that say how a source is read.
_OF_SOURCE = (
    *("architecture", "layout", "variant", "kwargs", "overrides"),
    *("wrapper", "prefix", "allow_nonfinite", "verify", "revision"),
)


def run(args: argparse.Namespace) -> None:
    if args.to is not None:
        given = [name for name in _OF_SOURCE if getattr(args, name)]
        if given:
            raise UserError(
                f"--{given[0].replace('overrides', 'set').replace('_', '-')} does not go with --to: the folder says "
                f"what it is"
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


def _is_published_name(source: str) -> bool:
    return source.partition(".")[0] in list_variants() and not Path(source).exists()


def _read(args: argparse.Namespace) -> CheckpointFile:
    """Reads a file, a folder or a Hub id; what an address has is downloaded first."""
    source = args.source
    if source.startswith(("https://", "http://")):
        # Unquoted first: what stands for a slash must not lead out of the cache.
        name = unquote(urlsplit(source).path).rpartition("/")[2]
        if not name:
            raise UserError(f"{source}: the address of a file ends in its name")
        source = download(source, name)
    return read_checkpoint(source, args.wrapper, args.prefix, args.revision)


def convert(args: argparse.Namespace) -> None:
    """Writes weights, processor and `conversion.json`; the folder appears whole or not at all."""
    architecture, overrides, variant, published = args.architecture, read_overrides(args), None, None
    by_name = _is_published_name(args.source)
    if by_name:
        if given := [name for name in _OF_SOURCE if name not in ("overrides", "verify") and getattr(args, name)]:
            raise UserError(
                f"--{given[0].replace('_', '-')} does not go with the name of a published checkpoint, which says what "
                f"it is"
            )
        found, published = find_published_name(args.source)
        architecture, variant = found.name, published.partition(".")[0]
    elif args.variant is not None:
        variant, _, tag = args.variant.partition(".")
        if variant in list_variants():
            found = find_variant(variant)
            known = published_checkpoints(found.name)
            if tag and args.variant not in known:
                raise UserError(unknown_name_message("checkpoint", args.variant, known))
            if architecture not in (None, found.name):
                raise UserError(f"--variant {variant} is of {found.name}, not of {architecture}")
            published = args.variant if tag else None
        else:
            if not is_timm_name(variant):
                find_variant(variant)  # raises, with the nearest name
            timm_model({"architecture": variant})  # raises for another family's
    with whole_folder(args.output) as folder:
        file = read_published(published, found) if by_name else _read(args)
        if str(file.metadata.get("model_type", "")).startswith("vitf_"):
            raise UserError(f"{args.source} is a model folder of this library already; --to LAYOUT writes it back")
        model, report, facts = write_converted(
            folder,
            file,
            architecture,
            read_kwargs(args.kwargs),
            args.layout,
            variant,
            published,
            args.revision,
            args.verify,
            args.allow_nonfinite,
            **overrides,
        )
    say(f"{args.output}: {type(model).__name__}, {report.num_parameters:,} parameters")
    say(f"  from {args.source}: {report.architecture}, layout {report.layout}, {report.num_tensors} tensors")
    for note in report.notes:
        say(f"  note: {note}")
    if args.verify and facts.parity is None:
        say(f"  not compared: {facts.parity_method}")
    elif args.verify:
        say(f"  equal up to {facts.parity:.1e} of the outputs' scale: {facts.parity_method}")


def write_back(source: str, output: str, layout: str) -> None:
    """Writes a model folder under another layout's names, in that layout's file type, with the config.json it needs."""
    model = load_saved_model(source)
    check_finite(source, model)
    facts = Conversion.read(source)
    if facts is not None and facts.layout.startswith(layout + "_"):
        layout = facts.layout  # of an architecture's several originals, the one that it came from
    name, chosen = find_layout(get_architecture(model.config.model_type), model.config, layout)
    with whole_folder(output) as folder:
        path = folder / f"model{chosen.suffix}"
        if chosen.native_config is not None:
            native = chosen.native_config(model)
            if "architecture" in native and has_head(model):
                native |= timm_label_names(model.config)
            preprocessing = write_preprocessing(load_saved_processor(source, model.config), native, folder)
            write_text(folder / "config.json", json.dumps({**native, **preprocessing}, indent=2) + "\n")
        elif chosen.constructor is not None:
            write_text(folder / "config.json", json.dumps(chosen.constructor(model), indent=2) + "\n")
        write_checkpoint(export_checkpoint(model, name), path, chosen.wrapper)
    say(f"{Path(output) / path.name}: {type(model).__name__} in the layout {name}")

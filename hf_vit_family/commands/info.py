"""
Show a published variant: its fields, parameters, FLOPs, preprocessing, and the checkpoints that exist for it.

examples:
  vit-family info deit_tiny_patch16_224
  vit-family info vit_base_patch16_224 --set image_size=384
"""

import argparse
import dataclasses

import torch
from transformers import PreTrainedConfig

from ..benchmark.timing import count_flops
from ..conversion.published import published_checkpoints
from ..notices import say
from ..variants import create_config, create_model, find_variant
from .arguments import add_overrides, read_overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("variant", metavar="VARIANT", help="a published variant, see 'vit-family list'")
    add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    overrides = read_overrides(args)
    architecture = find_variant(args.variant)
    config = create_config(args.variant, **overrides)
    with torch.device("meta"):
        model = create_model(args.variant, **overrides)
    shape = (1, *config.input_shape)
    *frames, _, height, width = config.input_shape
    example = f"{frames[0]} frames" if frames else "one image"
    rows = {
        "architecture": f"{architecture.name}: {architecture.difference}",
        "paper": architecture.paper,
        "classes": ", ".join(f"{architecture.prefix}{head}" for head in architecture.heads),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "FLOPs": f"{count_flops(model, shape) / 1e9:.2f} G for {example} of {height} x {width}",
        "code": f"{architecture.conversion.SOURCE.repository}@{architecture.conversion.SOURCE.commit}, "
        f"{architecture.conversion.SOURCE.license}",
    }
    say(args.variant)
    print_rows(rows)
    say("\nconfiguration")
    # What transformers' base class holds (return_dict, dtype, ...) says nothing about the architecture.
    general = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = [field.name for field in dataclasses.fields(config) if field.name not in general]
    print_rows({name: getattr(config, name) for name in own if not name.startswith("_")})
    say("\npreprocessing")
    print_rows(architecture.config_class.preprocessing(args.variant))
    say("\ncheckpoints")
    checkpoints = {
        key: checkpoint
        for key, checkpoint in published_checkpoints(architecture.name).items()
        if key.partition(".")[0] == args.variant
    }
    for key, checkpoint in checkpoints.items():
        top1 = f"{checkpoint.top1}% top-1 on ImageNet-1k ({checkpoint.top1_source})" if checkpoint.top1 else "no top-1"
        say(f"  {key}: {checkpoint.url}\n    weights: {checkpoint.license}; {top1}")
    if not checkpoints:
        say("  none published")


def print_rows(rows: dict) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        say(f"  {name:<{width}}  {value}")

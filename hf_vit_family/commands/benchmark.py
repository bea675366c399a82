"""
Time a variant against the same model of other libraries, in interleaved rounds of one run.

The column "x ours" is the time of that library over ours, taken round by round: above 1, ours is the faster. Peak
memory is measured in a process of its own for each side. A difference in parameters or FLOPs is shown: it is then not
the same model.

--mode loop times a step of the training loop of this library against a bare PyTorch step instead.

examples:
  vit-family benchmark vit_small_patch16_224 --against timm transformers
  vit-family benchmark deit_tiny_patch16_224 --against timm --mode train --compile --json result.json
  vit-family benchmark cct_2_3x2_32 --mode loop --batch-size 128
"""

import argparse
from pathlib import Path

import torch

from ..benchmark.timing import BenchmarkConfig, format_overhead, format_table, run_benchmark, to_json
from ..conversion.peers import PEERS
from ..errors import UserError
from ..files import check_writable, write_text
from ..notices import say
from .arguments import add_overrides, read_overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = BenchmarkConfig()
    parser.add_argument("variants", nargs="+", metavar="VARIANT", help="published variants, see 'vit-family list'")
    parser.add_argument("--against", nargs="+", default=[], choices=PEERS, help="libraries to compare with")
    parser.add_argument("--mode", choices=("forward", "train", "loop"), default=default.mode, help="what a step is")
    parser.add_argument("--batch-size", type=int, default=default.batch_size, help="images a step (default: 8)")
    parser.add_argument("--device", default=default.device, help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default=default.dtype)
    parser.add_argument("--compile", action="store_true", help="compile every side with torch.compile")
    parser.add_argument("--rounds", type=int, default=default.rounds, help="interleaved rounds (default: 15)")
    parser.add_argument("--json", metavar="FILE", help="also write the measurements here")
    add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    for option in ("batch_size", "rounds"):
        if getattr(args, option) < (2 if option == "rounds" else 1):
            raise UserError(f"--{option.replace('_', '-')} {getattr(args, option)} is too small")
    if args.mode == "loop" and (args.against or args.json or args.compile or args.device != BenchmarkConfig().device):
        raise UserError("--mode loop takes no --against, --json, --compile or --device: it runs where Accelerate would")
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, no such device, torch built without it
        raise UserError(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    config = BenchmarkConfig(
        mode=args.mode,
        batch_size=args.batch_size,
        device=args.device,
        dtype=args.dtype,
        compile=args.compile,
        rounds=args.rounds,
        overrides=read_overrides(args),
    )
    if config.mode == "loop":
        for variant in args.variants:
            say(format_overhead(variant, config))
        return
    if args.json:
        check_writable(Path(args.json).parent)
    results = {}
    for variant in args.variants:
        results[variant] = run_benchmark(variant, args.against, config)
        say(format_table(variant, config, results[variant]))
    if args.json:
        write_text(args.json, to_json(results, config))

"""
Makes the table of speed and memory in the README: a variant of each architecture that another library has
too.

    python tests/speed_table.py              # those that speed_table.json lacks; an hour on one core

One thread, batch 8, float32, forward pass and training step. What was measured is kept in tests/speed_table.json after
each variant; `python tests/readme_table.py` then writes the table.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import measured
import torch
from architectures import DOSSIERS
from tqdm import tqdm

from hf_vit_family.benchmark.timing import BenchmarkConfig, run_benchmark

RESULTS = Path(__file__).with_suffix(".json")
MODES = ("forward", "train")
# Variant to the libraries that have the same model, with as many parameters.
VARIANTS = {variant: libraries for each in DOSSIERS.values() for variant, libraries in each.speed.items()}


def results() -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Reads what was measured so far: variant to mode to library to the fields of `Measurement`."""
    return measured.results(RESULTS)


def measure(variant: str, rounds: int) -> None:
    """Measures a variant in both modes and adds it to the file."""
    modes = {}
    for mode in MODES:
        sides = run_benchmark(variant, VARIANTS[variant], BenchmarkConfig(mode=mode, rounds=rounds))
        different = [side.library for side in sides if side.parameters != sides[0].parameters]
        if different:
            raise ValueError(
                f"{variant} has another number of parameters in {', '.join(different)}: not the same model"
            )
        modes[mode] = {
            side.library: {
                "milliseconds": round(side.milliseconds, 1),
                "memory": round(side.memory),
                "ratio": [round(each, 3) for each in (side.ratio_lowest, side.ratio, side.ratio_highest)],
            }
            for side in sides
        }
    measured.keep(RESULTS, VARIANTS, variant, **modes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help="measure these anew (default: what is missing)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default: 7)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that measure memory
    for variant in tqdm(options.variants or [name for name in VARIANTS if name not in results()], desc="variants"):
        measure(variant, options.rounds)


if __name__ == "__main__":
    main()

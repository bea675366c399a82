"""
Reads compact golden cases: outputs of the original authors' code, with weights from a portable generator. See
goldens/README.md.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

FOLDER = Path(__file__).with_name("goldens")
# Name of the generator below: splitmix64, seeded by the name of a tensor.
GENERATOR = "splitmix64-v1"
_GAMMA, _MIX1, _MIX2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_SQRT12 = 3.4641016151377544


def generate(name: str, shape: list[int], mean: float, std: float) -> torch.Tensor:
    """
    The float32 tensor of the generator splitmix64-v1: uniform, with the given mean and standard deviation.

    Args:
        name: `"<architecture>/<case>/<key>"`, the seed.
    """
    seed = np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], dtype="<u8")[0]
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64
        z = seed + np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * _GAMMA
        z = (z ^ (z >> np.uint64(30))) * _MIX1
        z = (z ^ (z >> np.uint64(27))) * _MIX2
    uniform = ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    values = mean + (std * _SQRT12) * (uniform - 0.5)
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


@dataclass
class Golden:
    """One case: what the original was built with, its weights, its inputs and what it returned."""

    architecture: str
    case: str
    metadata: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    samples: dict[str, torch.Tensor]

    @property
    def kwargs(self) -> dict[str, Any]:
        return self.metadata["kwargs"]

    def compare(self, name: str, value: torch.Tensor) -> float:
        """
        Largest difference of `value` from the output of that name, relative to the largest magnitude of the output.
        """
        if name in self.samples:
            sample = self.metadata["samples"][name]
            assert list(value.shape) == sample["shape"]
            value, expected = value.flatten()[:: sample["stride"]], self.samples[name]
        else:
            expected = self.outputs[name]
        assert value.shape == expected.shape
        return ((value.double() - expected).abs().max() / expected.abs().max()).item()


def cases(architecture: str) -> list[str]:
    """Names of the cases of an architecture, as its folder has them."""
    return sorted(path.stem for path in (FOLDER / architecture).glob("*.safetensors"))


def load(architecture: str, case: str, folder: Path = FOLDER) -> Golden:
    """A compact case, with its weights and inputs made."""
    with safe_open(folder / architecture / f"{case}.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["golden"])
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    assert metadata["generator"] == GENERATOR
    for key, dtype in metadata["stored_dtype"].items():
        stored[key] = stored[key].to(getattr(torch, dtype))

    def made(entries):
        prefix = f"{metadata['arch']}/{case}/"
        return {key: generate(prefix + key, shape, mean, std) for key, shape, _, mean, std in entries}

    state_dict = made(metadata["weights"]) | {key: stored[f"weights/{key}"] for key in metadata["literal"]}
    state_dict |= {key: state_dict[first].clone() for key, first in metadata["same_as"].items()}
    inputs = made(metadata["input"]) | {key: stored[key] for key in metadata["input_literal"]}

    def named(prefix):
        return {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}

    return Golden(
        architecture,
        case,
        metadata,
        state_dict,
        {key.removeprefix("input/"): tensor for key, tensor in inputs.items()},
        named("output/"),
        named("output_sample/"),
    )

"""Parity: how far two models are apart, and in which layer it begins."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError


@dataclass(frozen=True)
class Parity:
    """
    Two sets of outputs compared.

    Args:
        differences: Output to its largest absolute difference, in the order in which the model computes them.
        scales: Output to the largest magnitude in the reference.
        tolerance: Largest difference that counts as equal, relative to the scale.
    """

    differences: dict[str, float]
    scales: dict[str, float]
    tolerance: float

    @property
    def max_difference(self) -> float:
        """The largest absolute difference of all outputs."""
        return max(self.differences.values())

    @property
    def first_difference(self) -> str | None:
        """The first output that is not equal, `None` if all are. A difference that is not a number is one."""
        for name, difference in self.differences.items():
            if not difference <= self.tolerance * self.scales[name]:
                return name
        return None

    @property
    def passed(self) -> bool:
        return self.first_difference is None

    def __str__(self) -> str:
        if self.passed:
            return f"equal: largest absolute difference {self.max_difference:.1e} in {len(self.differences)} outputs"
        name = self.first_difference
        return (
            f"different from {name} on: {self.differences[name]:.1e} at a scale of {self.scales[name]:.1e}, "
            f"more than {self.tolerance:.0e} of it"
        )


def compare(outputs: Mapping[str, Tensor], reference: Mapping[str, Tensor], tolerance: float = 1e-5) -> Parity:
    """
    Compares outputs by name, in the order of `outputs`.

    Args:
        tolerance: Relative to the largest magnitude of each reference: 1e-10 suits float64, 1e-5 float32.

    Raises:
        UserError: if there is nothing to compare, or names or shapes differ.
    """
    if not outputs or outputs.keys() != reference.keys():
        odd = sorted(outputs.keys() ^ reference.keys()) or ["none at all"]
        raise UserError(f"outputs to compare differ in their names: {', '.join(odd)}")
    differences, scales = {}, {}
    for name, value in outputs.items():
        expected = reference[name]
        if value.shape != expected.shape:
            raise UserError(f"output {name!r} has shape {tuple(value.shape)}, the reference {tuple(expected.shape)}")
        value, expected = value.detach().double().cpu(), expected.detach().double().cpu()
        differences[name] = (value - expected).abs().max().item()
        scales[name] = expected.abs().max().item()
    return Parity(differences, scales, tolerance)


@torch.no_grad()
def outputs_of(model: nn.Module, **inputs: Tensor) -> dict[str, Tensor]:
    """
    What a model of this library or of transformers computes, in order: `hidden_states.0` (the input of the first
    layer), `hidden_states.1` (the output of the first), ..., then its other tensors, such as `logits`.
    """
    outputs = model(**inputs, output_hidden_states=True, return_dict=True)
    states = {f"hidden_states.{i}": state for i, state in enumerate(outputs.hidden_states)}
    return states | {name: value for name, value in outputs.items() if isinstance(value, Tensor)}


def compare_models(
    model: nn.Module, reference: nn.Module, tolerance: float = 1e-5, seed: int = 0, **inputs: Tensor
) -> Parity:
    """
    Runs two models on the same input and compares the outputs that both have.

    Args:
        model: A model of this library, in evaluation mode. reference: One of this library or of transformers.
        tolerance: As in [`compare`].
        inputs: Keyword arguments of both; by default one random image or clip of the size and dtype of `model`.
        seed: Of that input.
    """
    if not inputs:
        generator = torch.Generator().manual_seed(seed)
        pixel_values = torch.randn(1, *model.config.input_shape, generator=generator)
        inputs = {"pixel_values": pixel_values.to(device=model.device, dtype=model.dtype)}
    ours, theirs = outputs_of(model, **inputs), outputs_of(reference, **inputs)
    common = [name for name in ours if name in theirs]
    return compare({name: ours[name] for name in common}, {name: theirs[name] for name in common}, tolerance)

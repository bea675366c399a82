"""
Writes a golden case: a small model of the original code, its weights by recipe, and what it returned in float64.

    python tests/write_golden.py poolformer/tiny timm.models.metaformer:MetaFormer \\
        --source "timm 1.0.31 metaformer.py" \\
        --kwargs '{"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32], "num_classes": 5}' \\
        --input 2 3 64 64 --record features=head.fc:input

From Python, `write_module_case` takes any module and `write_case` any function, such as one that calls flax. Run it
where the original is installed. tests/goldens/README.md describes the file; tests/golden.py reads it.
"""

import argparse
import importlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import golden
import torch
from safetensors.torch import save_file
from torch import nn

Tensors = dict[str, torch.Tensor]
# Outputs are kept whole up to this size in all, the smallest first. Of the others at most so many values are kept.
WHOLE_BYTES, SAMPLE_SIZE = 16 * 1024, 500
NARROW = (torch.int8, torch.int16, torch.int32)


def statistics_of(key: str, shape: Iterable[int]) -> tuple[float, float]:
    """
    Mean and standard deviation of a generated tensor. Scales and variances are about 1, biases and means about 0; a
    matrix keeps the size of what it is given. Nothing is constant, so that no mistake passes unnoticed.
    """
    shape = tuple(shape)
    if len(shape) < 2:
        about_zero = re.search(r"(bias|beta|mean)$", key) is not None
        return (0.0, 0.2) if about_zero else (1.0, 0.2)
    if shape[0] == 1:  # positions and tokens
        return 0.0, 0.5
    return 0.0, float(f"{(math.prod(shape[1:])) ** -0.5:.6g}")


def sample_stride(shape: Iterable[int]) -> int:
    """
    The smallest prime that leaves at most `SAMPLE_SIZE` values and divides no dimension: it walks through all axes.
    """
    shape = tuple(shape)
    for stride in itertools.count(max(2, math.ceil(math.prod(shape) / SAMPLE_SIZE))):
        if all(stride % factor for factor in range(2, stride)) and all(size % stride for size in shape):
            return stride
    raise AssertionError("there are infinitely many primes")


def narrowed(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in the narrowest type of whole numbers that holds them all, or the tensor itself."""
    for dtype in NARROW:
        if dtype.itemsize < tensor.element_size() and torch.equal(tensor.to(dtype).to(tensor.dtype), tensor):
            return tensor.to(dtype)
    return tensor


def write_case(
    architecture: str,
    case: str,
    template: Mapping[str, torch.Tensor],
    run: Callable[[Tensors, Tensors], Mapping[str, torch.Tensor]],
    inputs: Mapping[str, tuple[int, ...] | torch.Tensor],
    kwargs: Mapping[str, Any],
    source: str,
    *,
    literal: Iterable[str] = (),
    tied: Mapping[str, str] | None = None,
    statistics: Mapping[str, tuple[float, float]] | None = None,
    input_layout: str = "B,C,H,W",
    folder: Path = golden.FOLDER,
    **notes: Any,
) -> Path:
    """
    Writes `folder/architecture/case.safetensors`, and reads it again to see that `golden.load` gives the same.

    Args:
        template: The state dict of the original, with its keys; of a tensor that is generated only the shape counts.
        run: Takes a state dict and inputs, the floating ones in float64, and returns the outputs by name. `logits` and
            `features`, what the head reads, are needed; `test_goldens.OUTPUTS` has the other names.
        inputs: Name to a shape, whose values are generated with mean 0 and deviation 1, or to values that are kept.
        kwargs: The constructor's arguments as the converter takes them.
        source: `repository@commit`, or the package and its version; then the file.
        literal: Keys of tensors whose values are kept: what the original computes, such as tables of indices. Those of
            whole numbers are kept in any case.
        tied: Key to the key of the same tensor, or of one with equal values.
        statistics: Pattern of whole keys to mean and standard deviation, where `statistics_of` does not fit.
        input_layout: `"B,C,T,H,W"` for clips with channels before frames, `"B,T,H,W,C"` for those of flax.
        notes: Further entries of the metadata, such as what a reader trips over.

    Raises:
        ValueError: The outputs lack `logits`, or hold something that is not finite.
    """
    literal, tied = set(literal), dict(tied or {})
    literal |= {key for key, value in template.items() if not value.is_floating_point()}
    literal -= tied.keys()

    def entry(key: str, shape: Iterable[int], mean: float, std: float) -> list:
        return [key, list(shape), "float32", float(f"{mean:.6g}"), float(f"{std:.6g}")]

    weights = []
    for key, value in template.items():
        if key not in literal and key not in tied:
            chosen = [each for pattern, each in (statistics or {}).items() if re.fullmatch(pattern, key)]
            weights.append(entry(key, value.shape, *(chosen[0] if chosen else statistics_of(key, value.shape))))
    made = {name: value for name, value in inputs.items() if not isinstance(value, torch.Tensor)}
    kept = {f"input/{name}": value for name, value in inputs.items() if name not in made}
    kept |= {f"weights/{key}": template[key] for key in template if key in literal}
    stored = {key: narrowed(value).contiguous().clone() for key, value in kept.items()}
    metadata = {
        "arch": architecture,
        "case": case,
        "source": source,
        "kwargs": dict(kwargs),
        "input_layout": input_layout,
        **notes,
        "generator": golden.GENERATOR,
        "weights": weights,
        "literal": [key for key in template if key in literal],
        "same_as": tied,
        "input": [entry(f"input/{name}", shape, 0.0, 1.0) for name, shape in made.items()],
        "input_literal": [f"input/{name}" for name in inputs if name not in made],
        "stored_dtype": {
            key: str(value.dtype).removeprefix("torch.")
            for key, value in kept.items()
            if value.dtype != stored[key].dtype
        },
        "samples": {},
    }
    path = folder / architecture / f"{case}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)

    def save(tensors: Tensors) -> golden.Golden:
        save_file(tensors, path, {"golden": json.dumps(metadata)})
        return golden.load(architecture, case, folder)

    # Run from what the file gives, so that nothing is in the outputs that is not in the file.
    written = save(stored)
    state_dict, arguments = (
        {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()}
        for tensors in (written.state_dict, written.inputs)
    )
    outputs = {name: value.detach().contiguous() for name, value in run(state_dict, arguments).items()}
    broken = [name for name, value in outputs.items() if not value.isfinite().all()]
    if "logits" not in outputs or broken:
        path.unlink()
        raise ValueError(
            f"outputs with values that are not finite: {', '.join(broken)}; give `statistics` that keep them in range"
            if broken
            else f"the outputs need 'logits', and are {', '.join(outputs)}"
        )
    total = 0
    for name, value in sorted(outputs.items(), key=lambda item: item[1].nbytes):
        total += value.nbytes
        if total <= WHOLE_BYTES:
            stored[f"output/{name}"] = value
        else:
            stride = sample_stride(value.shape)
            metadata["samples"][name] = {"shape": list(value.shape), "stride": stride}
            stored[f"output_sample/{name}"] = value.flatten()[::stride].clone()
    written = save(stored)
    assert written.state_dict.keys() == template.keys()
    assert all(written.compare(name, value) == 0 for name, value in outputs.items())
    return path


def frozen_keys(model: nn.Module) -> tuple[set[str], dict[str, str]]:
    """The keys that a model computes or never learns, and those that repeat another one, with the first."""
    state_dict, first, tied = model.state_dict(), {}, {}
    learned = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    learned |= {key for key in state_dict if re.search(r"running_(mean|var)$", key)}
    for key, value in state_dict.items():
        if key not in learned:
            same = (tuple(value.shape), value.dtype, value.numpy(force=True).tobytes())
        else:
            same = value.data_ptr() if value.numel() else key
        if same in first:
            tied[key] = first[same]
        else:
            first[same] = key
    return state_dict.keys() - learned, tied


def write_module_case(
    architecture: str,
    case: str,
    model: nn.Module,
    inputs: Mapping[str, tuple[int, ...] | torch.Tensor],
    kwargs: Mapping[str, Any],
    source: str,
    *,
    record: Mapping[str, str] | None = None,
    forward: Callable[[nn.Module, Tensors], Any] | None = None,
    **options: Any,
) -> Path:
    """
    `write_case` of a PyTorch module. What it learns is generated, and so are the statistics of batch norms. Other
    buffers and parameters without gradient are kept.

    Args:
        record: Name of an output to `"<module>:input"` or `"<module>:output"`: its first argument, or what it returned.
        forward: Takes the model and the inputs, and returns logits, or a dictionary of outputs. By default the model is
            called with the inputs in their order; of what transformers returns, `logits` is taken.
        options: Those of `write_case`.
    """
    literal, tied = frozen_keys(model)
    recorded: Tensors = {}

    def hook(name: str, side: str) -> Callable:
        def keep(module: nn.Module, arguments: tuple, result: Any) -> None:
            recorded[name] = arguments[0] if side == "input" else result

        return keep

    def run(state_dict: Tensors, arguments: Tensors) -> Tensors:
        model.double().load_state_dict(state_dict)
        model.eval()
        with torch.no_grad():
            result = forward(model, arguments) if forward else model(*arguments.values())
        if isinstance(result, torch.Tensor):
            result = {"logits": result}
        elif forward is None:
            result = {"logits": result.logits}
        return {**result, **recorded}

    handles = []
    for name, place in (record or {}).items():
        module, _, side = place.rpartition(":")
        if side not in ("input", "output"):
            raise ValueError(f"{place!r}: expected '<module>:input' or '<module>:output'")
        handles.append(model.get_submodule(module).register_forward_hook(hook(name, side)))
    try:
        options = {**options, "literal": literal | set(options.get("literal", ())), "tied": tied}
        return write_case(architecture, case, model.state_dict(), run, inputs, kwargs, source, **options)
    finally:
        for handle in handles:
            handle.remove()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", metavar="ARCHITECTURE/CASE", help="folder and name of the file")
    parser.add_argument("factory", metavar="MODULE:NAME", help="class or function that builds the original")
    parser.add_argument("--source", required=True, help="repository@commit and file, or package and version")
    parser.add_argument("--kwargs", type=json.loads, default={}, help="its arguments, a JSON object")
    parser.add_argument("--input", type=int, nargs="+", required=True, metavar="SIZE", help="shape of the pixel values")
    parser.add_argument(
        "--record", nargs="*", default=[], metavar="OUTPUT=MODULE:SIDE", help="other outputs than logits"
    )
    parser.add_argument("--input-layout", default="B,C,H,W", help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=golden.FOLDER, help="(default: tests/goldens)")
    options = parser.parse_args(arguments)
    architecture, _, case = options.case.partition("/")
    module, _, name = options.factory.partition(":")
    path = write_module_case(
        architecture,
        case,
        getattr(importlib.import_module(module), name)(**options.kwargs),
        {"pixel_values": tuple(options.input)},
        options.kwargs,
        options.source,
        record=dict(each.split("=", 1) for each in options.record),
        input_layout=options.input_layout,
        folder=options.folder,
    )
    print(f"{path}: {path.stat().st_size / 1024:.1f} KB")


if __name__ == "__main__":
    main()

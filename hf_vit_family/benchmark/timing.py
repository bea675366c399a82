"""
Speed and memory of a variant, compared with the same model of other libraries.

Times are taken in interleaved rounds, because one machine's speed drifts more between two runs than two good libraries
differ: each round times every side once, and a ratio is taken within its round.
"""

import gc
import itertools
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from ..conversion.peers import create_peer
from ..variants import create_config, create_model, find_variant

OURS = "hf_vit_family"


@dataclass
class BenchmarkConfig:
    """Settings of a measurement. `dtype` is a name in torch; sizes are in pixels."""

    mode: str = "forward"
    batch_size: int = 8
    device: str = "cpu"
    dtype: str = "float32"
    compile: bool = False
    rounds: int = 15
    overrides: dict = field(default_factory=dict)


@dataclass
class Measurement:
    """
    One side: milliseconds a step (median, lowest, highest over rounds), peak memory in MiB, parameters, FLOPs an image
    or clip.
    """

    library: str
    milliseconds: float
    fastest: float
    slowest: float
    memory: float
    parameters: int
    flops: int
    # Time of this side over ours, taken round by round: above 1, ours is the faster.
    ratio: float
    ratio_lowest: float
    ratio_highest: float


def build(library: str, variant: str, config: BenchmarkConfig) -> nn.Module:
    """The variant as one library has it, on the device, with its mode and dtype set."""
    if library == OURS:
        model = create_model(variant, **config.overrides)
    else:
        model = create_peer(library, find_variant(variant).name, variant, create_config(variant, **config.overrides))
    model = model.to(device=config.device, dtype=getattr(torch, config.dtype))
    model.train(config.mode == "train")
    if config.compile:
        model.compile()
    return model


def make_step(model: nn.Module, variant: str, config: BenchmarkConfig) -> Callable[[], None]:
    """A function that runs one forward pass, or one training step (forward, cross-entropy, backward, SGD)."""
    model_config = create_config(variant, **config.overrides)
    shape = (config.batch_size, *model_config.input_shape)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(shape, generator=generator).to(device=config.device, dtype=getattr(torch, config.dtype))
    labels = torch.randint(model_config.num_labels, (config.batch_size,), generator=generator).to(config.device)

    def logits_of(outputs):
        return outputs if isinstance(outputs, torch.Tensor) else outputs[0]

    def forward():
        with torch.inference_mode():
            model(images)

    if config.mode == "forward":
        return forward
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def train():
        loss = nn.functional.cross_entropy(logits_of(model(images)).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return train


def _seconds(step: Callable[[], None], repeats: int, device: str) -> float:
    """Seconds a step, over `repeats` of them."""
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def count_flops(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Floating point operations of one forward pass (two for a multiply-add), counted on the meta device."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = model.to("meta").eval().requires_grad_(False)  # the counter hooks into the graph where there is one
    counter = FlopCounterMode(display=False)
    # Fused attention kernels hide their products from the counter.
    with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.empty(shape, device="meta", dtype=next(model.parameters()).dtype))
    return counter.get_total_flops()


def _peak_memory(library: str, variant: str, config: BenchmarkConfig, results: multiprocessing.SimpleQueue) -> None:
    """In a process of its own: MiB that building the model and a few steps need beyond what the imports hold."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    make_step(build(library, variant, config), variant, config)()  # what is imported or set up at the first use
    gc.collect()
    if config.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's high-water mark
    step = make_step(build(library, variant, config), variant, config)
    for _ in range(3):
        step()
    if config.device.startswith("cuda"):
        results.put(torch.cuda.max_memory_allocated() / 2**20)
    else:
        results.put(_resident("VmHWM") - before)


def _resident(key: str) -> float:
    """A field of /proc/self/status, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {key}")


def peak_memory(library: str, variant: str, config: BenchmarkConfig) -> float:
    """Peak memory in MiB of one side, measured in a fresh process (Linux)."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_peak_memory, args=(library, variant, config, results))
    # glibc reads these at its start: with them it gives freed memory back at once, and the high-water mark is what was
    # alive.
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the memory run of {library} ended with exit code {process.exitcode}")
    return results.get()


def run_benchmark(variant: str, libraries: list[str], config: BenchmarkConfig) -> list[Measurement]:
    """
    Measures one variant in this library and in others.

    Args:
        variant: A published variant. libraries: Keys of `hf_vit_family.conversion.peers.PEERS`.

    Returns:
        One [`Measurement`] a side, ours first.

    Raises:
        UserError: if a library does not have the variant or is not installed.
    """
    sides = [OURS, *libraries]
    models = {side: build(side, variant, config) for side in sides}
    steps = {side: make_step(model, variant, config) for side, model in models.items()}
    for side in sides:  # warm-up: compilation, caches, the allocator
        for _ in range(3):
            steps[side]()
    slowest = max(_seconds(steps[side], 1, config.device) for side in sides)
    repeats = max(1, round(0.2 / slowest))
    times: dict[str, list[float]] = {side: [] for side in sides}
    # Every order of the sides in turn: none always runs after the same other.
    orders = itertools.islice(itertools.cycle(itertools.permutations(sides)), config.rounds)
    for order in tqdm(orders, total=config.rounds, desc=f"{variant} {config.mode}", leave=False):
        for side in order:
            times[side].append(_seconds(steps[side], repeats, config.device))
    shape = (1, *create_config(variant, **config.overrides).input_shape)
    measurements = []
    for side in sides:
        ratios = [theirs / ours for theirs, ours in zip(times[side], times[OURS], strict=True)]
        plain = (
            models[side] if not config.compile else build(side, variant, BenchmarkConfig(overrides=config.overrides))
        )
        measurements.append(
            Measurement(
                library=side,
                milliseconds=1000 * statistics.median(times[side]),
                fastest=1000 * min(times[side]),
                slowest=1000 * max(times[side]),
                memory=peak_memory(side, variant, config),
                parameters=sum(p.numel() for p in models[side].parameters()),
                flops=count_flops(plain, shape),
                ratio=statistics.median(ratios),
                ratio_lowest=statistics.quantiles(ratios, n=4)[0],
                ratio_highest=statistics.quantiles(ratios, n=4)[2],
            )
        )
    return measurements


def format_table(variant: str, config: BenchmarkConfig, measurements: list[Measurement]) -> str:
    """The measurements as a table for people."""
    compiled = ", compiled" if config.compile else ""
    lines = [
        f"{variant}: {config.mode}, batch {config.batch_size}, {config.device} {config.dtype}{compiled}, "
        f"{config.rounds} interleaved rounds",
        f"{'library':<14} {'ms/step':>9} {'(fastest-slowest)':>19} {'x ours':>7} {'(quartiles)':>13} {'MiB':>7} "
        f"{'parameters':>12} {'GFLOPs':>8}",
    ]
    for m in measurements:
        lines.append(
            f"{m.library:<14} {m.milliseconds:>9.1f} {f'({m.fastest:.1f}-{m.slowest:.1f})':>19} {m.ratio:>7.2f} "
            f"{f'({m.ratio_lowest:.2f}-{m.ratio_highest:.2f})':>13} {m.memory:>7.0f} {m.parameters:>12,} "
            f"{m.flops / 1e9:>8.2f}"
        )
    ours = measurements[0]
    for m in measurements[1:]:
        if m.parameters != ours.parameters:
            lines.append(f"note: {m.library} has {m.parameters - ours.parameters:+,} parameters: not the same model")
    return "\n".join(lines)


def format_overhead(variant: str, config: BenchmarkConfig) -> str:
    """Measures what the training loop adds to a bare PyTorch step of the variant, and says it in a line for people."""
    from ..training.overhead import loop_overhead

    model = create_model(variant, **config.overrides)
    overhead = loop_overhead(model, model.config.input_shape, config.batch_size, steps=2 * config.rounds)
    return (
        f"{variant}: batch {config.batch_size}, a bare step takes {overhead.bare_milliseconds:.1f} ms, a step of the "
        f"loop {overhead.loop_milliseconds:.1f} ms: {overhead.share:+.1%} (median of {2 * config.rounds} pairs)"
    )


def to_json(results: dict[str, list[Measurement]], config: BenchmarkConfig) -> str:
    """The measurements, their setting and the versions as JSON."""
    import transformers

    return json.dumps(
        {
            "config": asdict(config),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "threads": torch.get_num_threads(),
            "results": {variant: [asdict(m) for m in measurements] for variant, measurements in results.items()},
        },
        indent=2,
    )

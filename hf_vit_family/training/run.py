"""A training run, from options to a model folder."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import nn
from torch.utils.data import DataLoader
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_outputs import ImageClassifierOutput

from ..cards import Evaluation, Training
from ..data import DataBundle, DataConfig, load_data, train_collate
from ..errors import UserError
from ..evaluation import evaluate_model
from ..files import sync_folder, write_text
from ..options import make_options
from ..plots import plot_curves
from ..variants import list_variants
from ..versions import library_versions
from .config import ModelOptions, ObjectiveOptions, OptimizationOptions, RunOptions
from .loop import METRICS, Position, TrainingBatches, TrainingLoop
from .lora import merge_adapters
from .setup import (
    check_output,
    check_trackers,
    choose_parameters,
    load_model,
    load_processor,
    make_objective,
    make_output,
)

OPTION_CLASSES = (ModelOptions, DataConfig, ObjectiveOptions, OptimizationOptions, RunOptions)

# Options that change how fast a run is or what it reports, but not what is learnt: they may differ when it is resumed.
FREE_ON_RESUME = frozenset({"num_workers", "cache_megabytes"} | {field.name for field in fields(RunOptions)})


@dataclass
class TrainingOptions:
    """Everything a run is told, by what it concerns. `from_values` takes it flat."""

    model: ModelOptions
    data: DataConfig
    objective: ObjectiveOptions
    optimization: OptimizationOptions
    run: RunOptions

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "TrainingOptions":
        """From option names and values, as a recipe has them. Raises UserError for a name or value that does not fit."""
        return cls(*make_options(OPTION_CLASSES, values))

    def flat(self) -> dict[str, Any]:
        """All options by name, as JSON holds them."""
        parts = (self.model, self.data, self.objective, self.optimization, self.run)
        return json.loads(json.dumps({name: value for part in parts for name, value in asdict(part).items()}))


class Predictor(nn.Module):
    """An objective as a classifier: `pixel_values` (B, [T,] C, H, W) to an output with `logits`, through every wrapper."""

    def __init__(self, objective: nn.Module):
        super().__init__()
        self.objective = objective

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.objective({"pixel_values": pixel_values})["logits"])


def make_accelerator(options: TrainingOptions) -> Accelerator:
    """The Accelerator of a run. UserError for a precision that the device does not have."""
    try:
        return Accelerator(
            mixed_precision=options.optimization.mixed_precision,
            gradient_accumulation_steps=options.optimization.gradient_accumulation_steps,
            log_with=options.run.trackers or None,
            project_dir=options.run.output,
        )
    except ValueError as error:
        raise UserError(f"mixed_precision={options.optimization.mixed_precision}: {error}") from error


@contextlib.contextmanager
def full_disk_is_one_line(output: str) -> Iterator[None]:
    """Turns the errors of a disk without room, wherever they come up, into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"no room to write below {output} ({error.strerror}): make room and go on with --resume"
        ) from error


def train(options: TrainingOptions, command: str) -> dict[str, float]:
    """
    Trains a model and saves it with its processor, `training.json`, `evaluation.json`, `metrics.jsonl` and `curves.png`
    in the output folder, and checkpoints below it.

    Args:
        command: What the user ran; it goes into the records of the run.

    Returns:
        The metrics of the weights that were saved: of the evaluation images, accuracies as fractions of 1.

    Raises:
        UserError: for input that does not fit. What is in the output folder by then stays whole.
    """
    with full_disk_is_one_line(options.run.output):
        return _train(options, command)


def _train(options: TrainingOptions, command: str) -> dict[str, float]:
    check_trackers(options.run.trackers)
    accelerator = make_accelerator(options)
    if accelerator.is_main_process:
        check_output(options.run)
    seed = options.optimization.seed
    set_seed(seed)
    processor = load_processor(options.model, options.data)
    bundle = load_data(options.data, processor, seed)
    set_seed(seed)  # weights depend on the seed, not on what the data drew
    model = choose_parameters(load_model(options.model, bundle), options.model)
    num_labels = model.config.num_labels
    batches = TrainingBatches(
        bundle.train,
        train_collate(options.data, num_labels),
        options.optimization.batch_size,
        options.optimization.gradient_accumulation_steps,
        seed,
        accelerator,
        options.data.num_workers,
        options.data.repeated_augmentation,
    )
    eval_loader = accelerator.prepare_data_loader(
        DataLoader(
            bundle.evaluation,
            batch_size=options.run.eval_batch_size or options.optimization.batch_size,
            num_workers=options.data.num_workers,
        )
    )

    def evaluate(objective: nn.Module) -> dict[str, float]:
        results = evaluate_model(Predictor(objective), eval_loader, accelerator=accelerator, num_labels=num_labels)
        metrics = {name: float(value) for name, value in results.items() if isinstance(value, (int, float))}
        return {**metrics, "num_images": int(results["confusion"].sum())}

    identity = {name: value for name, value in options.flat().items() if name not in FREE_ON_RESUME}
    identity |= {"processes": accelerator.num_processes}
    objective = make_objective(model, options.objective, processor, num_labels)
    loop = TrainingLoop(objective, batches, options.optimization, options.run, accelerator, identity, evaluate)
    if accelerator.is_main_process:
        make_output(options.run)
    accelerator.wait_for_everyone()
    if options.run.trackers:
        accelerator.init_trackers("vit-family", config={k: _plain(v) for k, v in options.flat().items()})
    position = loop.run()
    wall_seconds = position.wall_seconds
    if options.run.final_weights == "best":
        position = loop.load_best()
    weights = loop.weights()
    if accelerator.is_main_process:
        if options.model.lora_rank:
            weights = merge_adapters(weights, options.model.lora_alpha / options.model.lora_rank)
        save(options, model, weights, processor, bundle, position, wall_seconds, command, accelerator)
    report_bad_images(bundle, Path(options.run.output), accelerator)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return {name: value for name, value in position.evaluation.items() if name != "num_images"}


def report_bad_images(bundle: DataBundle, output: Path, accelerator: Accelerator) -> None:
    """Lists the images that no process could read in `bad_images.txt`, and says how many they are."""
    lines = set(gather_object(list(bundle.bad_images)))
    path = output / "bad_images.txt"
    if not accelerator.is_main_process or not lines:
        return
    if path.exists():  # from before the run was resumed
        lines |= set(path.read_text(encoding="utf-8").splitlines())
    write_text(path, "".join(f"{line}\n" for line in sorted(lines)))
    print(f"skipped {len(lines)} images that cannot be read: {path}")


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def save(
    options: TrainingOptions,
    model: nn.Module,
    weights: dict[str, torch.Tensor],
    processor: BaseImageProcessor,
    bundle: DataBundle,
    position: Position,
    wall_seconds: float,
    command: str,
    accelerator: Accelerator,
) -> None:
    """
    Writes the results of a run into its output folder: everything beside its place first, then all of it into place.

    Raises:
        UserError: if it cannot be written; nothing is half written then, and the checkpoints are whole.
    """
    output = Path(options.run.output)
    metrics = dict(position.evaluation)
    device = torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else "CPU"
    shared = {
        "dataset": options.data.dataset,
        "command": command,
        "versions": library_versions(),
        "seed": options.optimization.seed,
        "wall_seconds": round(wall_seconds, 1),
    }
    images_per_step = options.optimization.batch_size * options.optimization.gradient_accumulation_steps
    seen = position.step * images_per_step * accelerator.num_processes
    buffers = {name for name, _ in model.named_buffers()}
    facts = (
        Training(
            split=bundle.description["train_split"],
            num_images=bundle.description.get("num_train", seen),
            base_model=None if options.model.model in list_variants() else options.model.model,
            device=f"{accelerator.num_processes} x {device}",
            **shared,
        ),
        Evaluation(
            split=bundle.description["eval_split"],
            num_images=int(metrics.pop("num_images")),
            metrics=metrics,
            parameters=sum(w.numel() for name, w in weights.items() if name not in buffers),
            image_size=bundle.description["image_size"],
            **shared,
        ),
    )
    beside = Path(tempfile.mkdtemp(dir=output, prefix=".saving-"))
    try:
        model.save_pretrained(beside, state_dict=weights)
        processor.save_pretrained(beside)
        for fact in facts:
            fact.write(beside)
        plot_curves(output / METRICS, beside / "curves.png")
        sync_folder(beside)
        for path in sorted(beside.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, output / path.name)
        sync_folder(output, recursive=False)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"the model cannot be written to {output}: {error}; the checkpoints are whole: make room and go on with --resume"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)

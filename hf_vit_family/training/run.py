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
from accelerate.utils import DistributedDataParallelKwargs, gather_object, set_seed
from torch import nn
from torch.utils.data import DataLoader
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_outputs import ImageClassifierOutput
from vit_family_launcher import library_versions

from ..data.load import DataBundle, DataConfig, load_data, train_collate
from ..errors import UserError
from ..evaluation.evaluate import check_metric, evaluate_model
from ..explain.plots import plot_curves
from ..files import apply_umask, locked_folder, sync_folder, write_text
from ..notices import say
from ..options import make_options
from ..publishing.cards import Evaluation, Origin, Training, is_local, origin_of
from ..registry import modality_of
from ..variants import list_variants
from .config import ModelOptions, ObjectiveOptions, OptimizationOptions, RunOptions
from .loop import Position, TrainingBatches, TrainingLoop
from .lora import merge_adapters
from .objectives.objective import Objective, PretextObjective
from .output import BAD_IMAGES, CURVES, METRICS, SAVING, TRACKER, check_output, make_output
from .pretraining import (
    PRETEXTS,
    check_architecture,
    check_modality,
    check_options,
    check_sizes,
    evaluate_pretext,
    load_pretext_model,
    with_transform,
)
from .setup import check_trackers, choose_parameters, load_model, load_processor, make_objective
from .stopping import Interrupted, leave_signals_to_the_parent

OPTION_CLASSES = (ModelOptions, DataConfig, ObjectiveOptions, OptimizationOptions, RunOptions)

# Options that change how fast a run is or what it reports, but not what is learnt: they may differ when it is resumed.
FREE_ON_RESUME = frozenset(
    {"num_workers", "cache_megabytes", "trust_remote_code"} | {field.name for field in fields(RunOptions)}
)


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
        """
        From option names and values, as a recipe has them. Raises UserError for a name or value that does not fit.
        """
        return cls(*make_options(OPTION_CLASSES, values))

    def flat(self) -> dict[str, Any]:
        """All options by name, as JSON holds them."""
        parts = (self.model, self.data, self.objective, self.optimization, self.run)
        return json.loads(json.dumps({name: value for part in parts for name, value in asdict(part).items()}))


class Predictor(nn.Module):
    """
    An objective as a classifier: `pixel_values` (B, [T,] C, H, W) to an output with `logits`, through every wrapper.
    """

    def __init__(self, objective: nn.Module):
        super().__init__()
        self.objective = objective

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.objective({"pixel_values": pixel_values})["logits"])


def make_accelerator(options: TrainingOptions, partial_gradients: bool = False) -> Accelerator:
    """
    The Accelerator of a run. UserError for a precision that the device does not have.

    Args:
        partial_gradients: Whether parameters may be without a gradient, as those that only a classifier needs.
    """
    try:
        return Accelerator(
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=partial_gradients)],
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


def train(
    options: TrainingOptions,
    command: str,
    recipe: str | None = None,
    objective: type[PretextObjective] | None = None,
) -> dict[str, float]:
    """
    Trains a model and saves it with its processor, `training.json`, `evaluation.json`, `metrics.jsonl` and `curves.png`
    in the output folder, and checkpoints below it.

    Args:
        command: What the user ran; it goes into the records of the run.
        recipe: The file that options come from, if they do: a run does not overwrite it.
        objective: What to learn from images without labels, in place of the option `objective`.

    Returns:
        The metrics of the weights that were saved: of the evaluation images, accuracies as fractions of 1.

    Raises:
        UserError: for input that does not fit. What is in the output folder by then stays whole.
        Interrupted: after SIGTERM or SIGINT, with a checkpoint of the step that was under way.
    """
    with full_disk_is_one_line(options.run.output), contextlib.ExitStack() as stack:
        check_trackers(options.run.trackers)
        if objective is None:
            options.objective.check_read()
        objective = objective or PRETEXTS.get(options.objective.objective)
        if objective is None:
            check_metric(options.run.best_metric or Objective.best_metric)
        else:
            check_options(objective, options.model, options.data, options.objective, options.optimization)
        accelerator = make_accelerator(options, partial_gradients=objective is not None)
        if accelerator.is_main_process:
            stack.enter_context(locked_folder(options.run.output))
            inputs = {
                "model": options.model.model,
                "dataset": options.data.dataset,
                "teacher": options.objective.teacher,
            }
            check_output(options.run, {**inputs, "recipe": recipe})
        try:
            return _train(options, command, accelerator, objective)
        except Interrupted:
            accelerator.end_training()
            raise


def _train(
    options: TrainingOptions, command: str, accelerator: Accelerator, pretext: type[PretextObjective] | None
) -> dict[str, float]:
    seed = options.optimization.seed
    set_seed(seed)
    base_model = None if options.model.model in list_variants() else options.model.model
    origin = origin_of(base_model, options.model.revision) if base_model and accelerator.is_main_process else None
    processor = load_processor(options.model, options.data)
    if pretext is not None:
        check_modality(pretext, options.model.model, modality_of(processor))
        check_architecture(pretext, options.model)
    bundle = load_data(options.data, processor, seed, labelled=pretext is None or pretext.labelled)
    set_seed(seed)  # weights depend on the seed, not on what the data drew
    by_number = options.data.match_classes == "number"
    if pretext is None:
        model, bundle = load_model(options.model, bundle, by_number)
    else:
        model = load_pretext_model(options.model, bundle, pretext.head)
    model = choose_parameters(model, options.model)
    num_labels = model.config.num_labels
    if pretext is None:
        objective = make_objective(model, options.objective, processor, by_number, options.model.trust_remote_code)
        collate, eval_collate = train_collate(options.data, num_labels), None
    else:
        size = tuple(bundle.description["image_size"])
        objective = pretext.from_options(model, options.objective, processor, size)
        transform = objective.image_transform(options.data.horizontal_flip)
        check_sizes(objective, bundle, transform)
        if transform is not None:
            bundle = with_transform(bundle, transform)
        collate = eval_collate = objective.collate
    batches = TrainingBatches(
        bundle.train,
        collate,
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
            collate_fn=eval_collate,
            num_workers=options.data.num_workers,
            worker_init_fn=leave_signals_to_the_parent if options.data.num_workers else None,
        )
    )

    def evaluate(objective: nn.Module) -> dict[str, float]:
        images = loop.interruptible(eval_loader)
        if pretext is not None:
            return evaluate_pretext(objective, images, accelerator)
        results = evaluate_model(Predictor(objective), images, accelerator=accelerator, num_labels=num_labels)
        metrics = {name: float(value) for name, value in results.items() if isinstance(value, (int, float))}
        return {**metrics, "num_images": int(results["confusion"].sum())}

    identity = {name: value for name, value in options.flat().items() if name not in FREE_ON_RESUME}
    if pretext is not None:
        identity["objective"] = pretext.title
    identity |= {"processes": accelerator.num_processes, "num_train": bundle.description.get("num_train")}
    if options.data.streaming:  # each loader process has its share of the stream
        identity["num_workers"] = options.data.num_workers
    loop = TrainingLoop(objective, batches, options.optimization, options.run, accelerator, identity, evaluate)
    if accelerator.is_main_process:
        make_output(options.run)
    accelerator.wait_for_everyone()
    if options.run.trackers:
        accelerator.init_trackers(TRACKER, config={k: _plain(v) for k, v in options.flat().items()})
    position = loop.run()
    wall_seconds = position.wall_seconds
    if options.run.final_weights == "best":
        position = loop.load_best()
    weights = loop.weights()
    if accelerator.is_main_process:
        if options.model.lora_rank:
            weights = merge_adapters(weights, options.model.lora_alpha / options.model.lora_rank)
        save(options, model, weights, processor, bundle, position, wall_seconds, command, accelerator, origin, pretext)
    report_bad_images(bundle, Path(options.run.output), accelerator)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return {name: value for name, value in position.evaluation.items() if name != "num_images"}


def report_bad_images(bundle: DataBundle, output: Path, accelerator: Accelerator) -> None:
    """Lists the images that no process could read in `bad_images.txt`, and says how many they are."""
    lines = set(gather_object(list(bundle.bad_images)))
    path = output / BAD_IMAGES
    if not accelerator.is_main_process or not lines:
        return
    if path.exists():  # from before the run was resumed
        lines |= set(path.read_text(encoding="utf-8").splitlines())
    write_text(path, "".join(f"{line}\n" for line in sorted(lines)))
    say(f"skipped {len(lines)} images that cannot be read: {path}")


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
    origin: Origin | None,
    pretext: type[PretextObjective] | None,
) -> None:
    """
    Writes the results of a run into its output folder: everything next to its place first, then all of it into place.

    Args:
        origin: Where the weights that training started from come from; None for random ones.
        pretext: What was learnt in place of labels.

    Raises:
        UserError: if it cannot be written; nothing is half written then, and the checkpoints are whole.
    """
    output = Path(options.run.output)
    metrics = dict(position.evaluation)
    device = torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else "CPU"
    shared = {
        "dataset": options.data.dataset,
        "dataset_is_local": is_local(options.data.dataset),
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
            base_model=origin and options.model.model,
            base_model_is_local=origin and origin.local,
            hub_base_model=origin and origin.hub_id,
            license=origin and origin.license,
            objective=pretext and pretext.title,
            with_labels=pretext is not None and pretext.labelled,
            pretrained_by=origin and origin.pretrained_by,
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
    beside = Path(tempfile.mkdtemp(dir=output, prefix=SAVING))
    try:
        model.save_pretrained(beside, state_dict=weights)
        processor.save_pretrained(beside)
        for fact in facts:
            fact.write(beside)
        plot_curves(output / METRICS, beside / CURVES)
        apply_umask(beside)
        sync_folder(beside)
        for path in sorted(beside.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, output / path.name)
        sync_folder(output, recursive=False)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"the model cannot be written to {output}: {error}; the checkpoints are whole: make room and go on with "
            f"--resume"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)

"""
Train, fine-tune or distil an image or video classifier, or pretrain a model of images without labels.

Options come from a recipe (a shipped name or a YAML file of option names and values) and from the command line, which
wins. The output folder gets the model with its processor, the records of the run, curves and checkpoints. A run that
was killed goes on with --resume, exactly where it was; SIGTERM and Ctrl-C end it with a checkpoint. Also runs under
`accelerate launch`.

examples:
  vit-family train --recipe digits --output runs/digits
  vit-family train --recipe cifar10_cct_2 --output runs/cct --epochs 20 --seed 1
  vit-family train --recipe moving_digits_timesformer --output runs/moving_digits
  vit-family train --model runs/digits --dataset ./photos --reset_head --output runs/photos
  vit-family train --objective simmim --model swin_tiny_patch4_window7_224 --dataset ./photos --output runs/simmim
  vit-family train --objective mae --model vit_small_patch16_224 --dataset ./photos --output runs/mae
  vit-family train --model vit_tiny_patch16_224 --set hidden_size=96 patch_size=4 --dataset digits --output runs/vit
"""

import argparse
import os
import shlex
import sys
from functools import partial

from ..notices import say
from ..options import add_options, check_names
from ..training.recipes import RECIPES, read_recipe
from ..training.run import OPTION_CLASSES, TrainingOptions, train
from ..training.stopping import Interrupted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shipped = "; ".join(f"{recipe.name}: {recipe.expected_time}" for recipe in RECIPES.values())
    parser.add_argument(
        "--recipe", metavar="NAME_OR_FILE", help=f"options to start from; shipped are {shipped}".replace("%", "%%")
    )
    add_options(parser, *OPTION_CLASSES)


def run(args: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(args).items() if name != "recipe"}
    recipe = read_recipe(args.recipe) if args.recipe else {}
    check_names(OPTION_CLASSES, recipe, place=f"recipe {args.recipe}: ")
    values = {**recipe, **given}
    options = TrainingOptions.from_values(values)
    command = shlex.join(["vit-family", *sys.argv[1:]])
    if options.run.num_processes > 1 and "WORLD_SIZE" not in os.environ:
        from ..training.launch import launch

        run_training = partial(launch, values, command, options.run.num_processes)
    else:
        run_training = partial(train, options, command)
    try:
        run_training(recipe=args.recipe)
    except Interrupted as stopped:
        say(f"vit-family train: {stopped}", error=True)
        return stopped.exit_code
    if int(os.environ.get("RANK", "0")) == 0:
        say(f"model, records and checkpoints: {options.run.output}")
    return 0

"""Options that several commands share."""

import argparse
import json
import typing
from typing import Any, Literal

from ..data.load import DataConfig
from ..errors import UserError
from ..hub import REVISION_HELP, TRUST_REMOTE_CODE_HELP
from ..options import member_type


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="replace fields of the configuration, for example: image_size=160 drop_path_rate=0.1",
    )


def add_revision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", metavar="REVISION", help=REVISION_HELP)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which revision of a model is loaded, and whether its code may run."""
    add_revision(parser)
    parser.add_argument("--trust-remote-code", action="store_true", help=TRUST_REMOTE_CODE_HELP)


def read_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """
    The fields of `--set` with their values: JSON where it is JSON, text otherwise. Raises UserError without a "=".
    """
    overrides = {}
    for item in args.overrides:
        name, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"--set {item}: expected FIELD=VALUE")
        try:
            overrides[name] = json.loads(text)
        except json.JSONDecodeError:
            overrides[name] = text
    return overrides


def add_data_options(parser: argparse.ArgumentParser, names: tuple[str, ...]) -> None:
    """Options that are fields of [`DataConfig`], with its defaults and texts; the data set must be named."""
    hints = typing.get_type_hints(DataConfig)
    for name in names:
        field, kind = DataConfig.__dataclass_fields__[name], member_type(hints[name])
        is_choice = typing.get_origin(kind) is Literal
        shown = "" if field.default is None or name == "dataset" else f" (default: {field.default})"
        parser.add_argument(
            f"--{name}",
            type=str if is_choice else kind,
            default=field.default,
            required=name == "dataset",
            choices=typing.get_args(kind) if is_choice else None,
            help=field.metadata["help"] + shown,
        )


def read_data_options(args: argparse.Namespace, names: tuple[str, ...]) -> DataConfig:
    """What `add_data_options` was given. Raises UserError for a value outside its range."""
    return DataConfig(**{name: getattr(args, name) for name in names})


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    """How an encoder's features are made; of a variant, what its random weights are of."""
    parser.add_argument(
        "--pooling",
        choices=("model", "mean"),
        help="features: the model's pooled output, or the mean of its last tokens (default: the pooled output, if the "
        "model has the weights for it)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of a variant's random weights (default: 0)")
    add_overrides(parser)

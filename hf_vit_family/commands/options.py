"""Options that several commands share."""

import argparse
import json
from typing import Any

from ..errors import UserError


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="replace fields of the configuration, for example: image_size=160 drop_path_rate=0.1",
    )


def read_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `--set` with their values: JSON where it is JSON, text otherwise. Raises UserError without a "="."""
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

"""
List the published variants.

examples:
  vit-family list
  vit-family list 'deit*384'
"""

import argparse

from ..errors import UserError
from ..notices import say
from ..variants import list_variants


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern that names must match (default: all)")


def run(args: argparse.Namespace) -> None:
    names = list_variants(args.pattern)
    if not names:
        raise UserError(f"no variant matches {args.pattern!r}; 'vit-family list' shows all")
    say("\n".join(names))

"""
The `vit-family` command, installed as the top-level package `vit_family_launcher`.

It stands outside `hf_vit_family` because importing that package registers every architecture with transformers, which
takes seconds: `vit-family --help` answers at once, and a command imports only what it needs.
"""

import argparse
import difflib
import importlib
import logging
import sys

# Command: what it does, in one line. Each is a module of hf_vit_family.commands with `add_arguments(parser)` and `run(args)`.
COMMANDS = {
    "demo": "train, measure, publish and look at a small model of digits in two minutes",
    "list": "list the published variants",
    "info": "show a variant: fields, parameters, FLOPs, source, licence",
    "convert": "convert a checkpoint to this library's layout, or back",
    "train": "train, fine-tune or distil an image or video classifier",
    "evaluate": "measure an image or video classifier on a data set",
    "attend": "show what an image or video classifier attends to",
    "predict": "classify images or videos with a model folder or a Hub id",
    "publish": "stage a model folder for the Hub, verify it in a clean process, push it",
    "benchmark": "time a variant against the same model of other libraries",
}


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line and exit code 2, without the usage, and name the nearest valid option."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}; see '{self.prog} --help'\n")

    def parse_args(self, args=None, namespace=None):
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], options, n=1, cutoff=0.5)
            self.error(f"unknown argument {unknown[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return namespace


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command's name; what follows the name belongs to the command's own parser."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = OneLineParser(
        prog="vit-family",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Vision transformers for images and video as Hugging Face models.",
        epilog=f"commands:\n{listing}\n\n'vit-family COMMAND --help' explains a command, with examples.",
    )
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """
    Runs one command. Returns its exit code: 0, or 2 for bad input, which is reported in one line on standard error.

    Args:
        argv: Arguments without the program's name; those of the process by default.
    """
    args = make_parser().parse_args(argv)
    # torchao, where it is installed, registers itself in a way that this torch warns its authors about on every start.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    command = importlib.import_module(f"hf_vit_family.commands.{args.command}")
    from hf_vit_family.errors import UserError

    parser = OneLineParser(
        prog=f"vit-family {args.command}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=command.__doc__,
    )
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args(args.arguments)) or 0
    except UserError as error:
        print(f"vit-family {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        sys.stderr.close()
        return 0

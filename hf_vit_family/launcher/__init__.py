"""
The `vit-family` command, installed as the top-level package `vit_family_launcher`.

It stands outside `hf_vit_family` because importing that package registers every architecture with transformers, which
takes seconds: `vit-family --help` answers at once, and a command imports only what it needs.
"""

import argparse
import difflib
import importlib
import importlib.metadata
import logging
import platform
import sys
import traceback

# Command: what it does, in one line. Each is a module of hf_vit_family.commands with `add_arguments(parser)` and
# `run(args)`.
COMMANDS = {
    "demo": "train, measure, publish and look at a small model of digits in a few minutes",
    "list": "list the published variants",
    "info": "show a variant: fields, parameters, FLOPs, source, licence",
    "convert": "convert a checkpoint to this library's layout, or back",
    "train": "train, fine-tune or distil an image or video classifier",
    "evaluate": "measure an image or video classifier on a data set",
    "features": "write the features of images or videos to a parquet file",
    "attend": "show what an image or video classifier attends to",
    "predict": "classify images or videos with a model folder or a Hub id",
    "publish": "stage a model folder for the Hub, verify it in a clean process, push it",
    "benchmark": "time a variant against the same model of other libraries",
}

# What training and evaluation depend on.
LIBRARIES = ("hf_vit_family", "torch", "torchvision", "transformers", "accelerate", "datasets")


class OneLineParser(argparse.ArgumentParser):
    """
    A parser whose errors are one line and exit code 2, without the usage, and name the nearest valid option. Options
    may be typed with hyphens or with underscores.
    """

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}; see '{self.prog} --help'\n")

    def parse_args(self, args=None, namespace=None):
        options = [option for action in self._actions for option in action.option_strings]
        spellings = {option[2:].replace("_", "-"): option for option in options}
        words = []
        for word in sys.argv[1:] if args is None else args:
            name, *value = word.split("=", 1) if word.startswith("--") else [word]
            known = spellings.get(name[2:].replace("_", "-")) if word.startswith("--") else None
            words.append("=".join((known or name, *value)))
        namespace, unknown = self.parse_known_args(words, namespace)
        if unknown:
            near = difflib.get_close_matches(unknown[0].partition("=")[0], options, n=1, cutoff=0.5)
            self.error(f"unknown argument {unknown[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return namespace


def library_versions() -> dict[str, str]:
    """Library to installed version, for those that a training or an evaluation depends on."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


class ShowVersions(argparse.Action):
    """Shows what a report of a fault should name, a line for each library. Looked up only when asked for."""

    def __call__(self, parser, namespace, values, option_string=None):
        versions = library_versions() | {"Python": platform.python_version()}
        sys.stdout.write("".join(f"{name} {version}\n" for name, version in versions.items()))
        parser.exit()


def command_name(text: str) -> str:
    """The name of a command; an error names the nearest one."""
    if text not in COMMANDS:
        near = difflib.get_close_matches(text, COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"commands are {', '.join(COMMANDS)}"
        raise argparse.ArgumentTypeError(f"unknown command {text!r}; {hint}")
    return text


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
    parser.add_argument(
        "--version",
        action=ShowVersions,
        nargs=0,
        help="show the versions of this library and of those it stands on",
    )
    parser.add_argument("command", metavar="COMMAND", type=command_name, help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """
    Runs one command. Returns its exit code: 0, 1 if it could read a part of its files only, or 2 for bad input or any
    other error, which is reported in one line on standard error, and with its traceback where `--debug` is given.

    Args:
        argv: Arguments without the program's name; those of the process by default.
    """
    args = make_parser().parse_args(argv)
    # torchao, where it is installed, registers itself in a way that this torch warns its authors about on every start.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    command = importlib.import_module(f"hf_vit_family.commands.{args.command}")
    from hf_vit_family.errors import UserError
    from hf_vit_family.hub import bound_requests
    from hf_vit_family.notices import say
    from hf_vit_family.refusals import refusal

    parser = OneLineParser(
        prog=f"vit-family {args.command}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=command.__doc__,
    )
    command.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    given = parser.parse_args(args.arguments)
    bound_requests()
    debug = given.debug
    del given.debug
    try:
        code = command.run(given) or 0
        sys.stdout.flush()  # an error of writing is one of the command, not of the interpreter's end
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        sys.stderr.close()
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, UserError):
            message = str(error)
        else:
            message = refusal(error) or (
                f"a fault of hf_vit_family, {type(error).__name__}: {str(error)[:500]}; please report it to the "
                f"project's issue tracker with what the option --debug shows"
            )
        say(f"{parser.prog}: {' '.join(message.split())}", error=True)
        return 2

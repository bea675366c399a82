"""
Publish a model folder on the Hub, so that it loads with nothing installed but transformers and torch.

The folder is staged anew (weights, configuration, processor, code, model card), loaded in a process that cannot import
this package, compared bit for bit with this one, and pushed as one commit. The card states what conversion.json,
training.json and evaluation.json in the folder record; of paths on this machine they keep the last part only.
Everything that they say is shown before the push.

examples:
  vit-family publish runs/digits someone/vit-digits --license apache-2.0
  vit-family publish runs/digits someone/vit-digits --dry-run --stage staged
  vit-family publish runs/digits another/vit-digits --license apache-2.0 --create-pr
"""

import argparse
import filecmp
import tempfile
from pathlib import Path

from ..errors import UserError
from ..files import check_writable
from ..notices import say
from ..publishing.cards import FACTS, recorded_texts
from ..publishing.publish import check_repo_id, check_target, check_token, push, stage, verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="model folder: configuration, weights, processor")
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="repository on the Hub, created where it does not exist")
    parser.add_argument(
        "--license", metavar="ID", help="licence of the weights, as the Hub names it (such as apache-2.0)"
    )
    parser.add_argument("--private", action="store_true", help="the repository must be private")
    parser.add_argument("--stage", type=Path, metavar="DIR", help="keep what is published in this new folder")
    parser.add_argument(
        "--replace", action="store_true", help="overwrite and remove files that others put into the repository"
    )
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to, created where it does not exist")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request in a repository that exists")
    parser.add_argument("--dry-run", action="store_true", help="stage and verify, but push nothing")


def same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files, byte for byte."""
    names = {path.name for path in one.iterdir()}
    if names != {path.name for path in other.iterdir()}:
        return False
    same, _, _ = filecmp.cmpfiles(one, other, names, shallow=False)
    return set(same) == names


def run(args: argparse.Namespace) -> None:
    check_repo_id(args.repo_id)
    check_target(args.revision, args.create_pr)
    if args.stage is not None:
        check_writable(args.stage.parent)
    if not args.dry_run:
        check_token()  # staging takes a while: say so before, not after
    with tempfile.TemporaryDirectory() as scratch:
        staged = args.stage or Path(scratch, "staged")
        if staged.is_dir() and any(staged.iterdir()):  # of an earlier try, perhaps
            again = Path(scratch, "again")
            stage(args.folder, again, args.repo_id, args.license)
            if not same_files(staged, again):
                raise UserError(f"{staged} holds something else than would be staged now; choose another or remove it")
        else:
            stage(args.folder, staged, args.repo_id, args.license)
        say("what becomes public:" if not args.private else "what those who may read the repository see:")
        for file in sorted(staged.iterdir()):
            say(f"{file.stat().st_size:>14,}  {file.name}")
        for kind in FACTS:
            for name, value in recorded_texts(kind.read(staged)):
                say(f"  {kind.FILE}: {name}: {' '.join(value.split())}")
        verification = verify(staged)
        say(
            f"verified without this package: {verification.tensors} outputs of {', '.join(verification.classes)} "
            "are equal bit for bit"
        )
        if args.dry_run:
            say("dry run: nothing was pushed")
        else:
            say(push(staged, args.repo_id, args.private, args.replace, args.revision, args.create_pr))

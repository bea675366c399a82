"""
Publish a model folder on the Hub, so that it loads with nothing installed but transformers and torch.

The folder is staged anew (weights, configuration, processor, code, model card), loaded in a process that cannot import
this package, compared bit for bit with this one, and pushed as one commit. The card states what conversion.json,
training.json and evaluation.json in the folder record.

examples:
  vit-family publish runs/digits someone/vit-digits --license apache-2.0
  vit-family publish runs/digits someone/vit-digits --dry-run --stage staged
"""

import argparse
import tempfile
from pathlib import Path

from ..publish import check_repo_id, check_token, push, stage, verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="model folder: configuration, weights, processor")
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="repository on the Hub, created where it does not exist")
    parser.add_argument(
        "--license", metavar="ID", help="licence of the weights, as the Hub names it (such as apache-2.0)"
    )
    parser.add_argument("--private", action="store_true", help="the repository must be private")
    parser.add_argument("--stage", type=Path, metavar="DIR", help="keep what is published in this new folder")
    parser.add_argument("--dry-run", action="store_true", help="stage and verify, but push nothing")


def run(args: argparse.Namespace) -> None:
    check_repo_id(args.repo_id)
    if not args.dry_run:
        check_token()  # staging takes a while: say so before, not after
    with tempfile.TemporaryDirectory() as scratch:
        staged = args.stage or Path(scratch, "staged")
        stage(args.folder, staged, args.repo_id, args.license)
        for file in sorted(staged.iterdir()):
            print(f"{file.stat().st_size:>14,}  {file.name}")
        verification = verify(staged)
        print(
            f"verified without this package: {verification.tensors} outputs of {', '.join(verification.classes)} "
            "are equal bit for bit"
        )
        if args.dry_run:
            print("dry run: nothing was pushed")
        else:
            print(push(staged, args.repo_id, args.private))

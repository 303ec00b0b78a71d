"""``fastmsgm verify`` and ``fastmsgm merge``: files of samples, looked at and completed."""

from __future__ import annotations

import argparse

from fastmsgm.output.verification import merge, verify


def add_verify(command: argparse.ArgumentParser) -> None:
    """Add the options of ``verify``."""
    command.set_defaults(run=_verify)
    command.add_argument("path", help="a .npy or .npz file, or a folder of PNG files")


def add_merge(command: argparse.ArgumentParser) -> None:
    """Add the options of ``merge``."""
    command.set_defaults(run=_merge)
    command.add_argument("path", help="--out of sample --shard, whose parts are all done")


def _verify(args: argparse.Namespace) -> None:
    manifest = verify(args.path)
    print(
        f"{args.path}: {manifest['n']:,} samples, from {manifest['start']} of seed "
        f"{manifest['seed']}; all checksums hold"
    )


def _merge(args: argparse.Namespace) -> None:
    merge(args.path)
    print(args.path)

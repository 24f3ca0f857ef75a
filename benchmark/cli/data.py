"""Data sets, and what attacks do to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    pass
from bdbench.cli.group import FILE, FOLDER, Commands, cli, load_plugins, say

TRAINED = "For an attack that trains."


@cli.group(cls=Commands)
def data() -> None:
    """Find, prepare and poison data sets."""


@data.command(name="ls")
@click.option("--data", "folder", type=FOLDER, help="Where data sets lie. [default: $BDBENCH_DATA]")
def data_ls(folder: Path | None) -> None:
    """Show which data sets were found, and where."""
    from bdbench.datasets.registry import datasets
    from bdbench.storage.folders import roots

    for name in datasets.names():
        found = datasets.build(name).locate(roots(folder))
        say(f"{name:<16} {found or 'not found'}")
    say(f"searched: {', '.join(str(root) for root in roots(folder))}")


@data.command()
@click.argument("name")
@click.option("--data", "folder", type=FOLDER, help="Where data sets lie. [default: $BDBENCH_DATA]")
def prepare(name: str, folder: Path | None) -> None:
    """Decode a data set into the cache and show what is in it."""
    from bdbench.datasets.registry import datasets
    from bdbench.storage.cache import Cache
    from bdbench.storage.folders import cache_root, roots

    loaded = datasets.build(name).load(roots(folder), Cache(cache_root()))
    height, width = loaded.train.size
    say(f"data set        {datasets.canonical(name)}")
    say(f"training images {len(loaded.train):,} of {height} x {width} pixels")
    say(f"test images     {len(loaded.test):,}")
    say(f"classes         {loaded.train.num_classes}: {', '.join(loaded.class_names)}")
    say(f"sha256          {loaded.sha256}")
    for note in loaded.notes:
        say(f"note            {note}")


@data.command()
@click.argument("attack")
@click.option("--dataset", default="toy", show_default=True, metavar="SPEC")
@click.option("--count", default=8, show_default=True, metavar="N", help="Test images to show.")
@click.option("--seed", default=0, show_default=True, metavar="N")
@click.option(
    "--out", type=FILE, help="Where to draw: .png, .pdf or .svg. [default: preview-ATTACK.png]"
)
@click.option("--data", type=FOLDER, help="Where data sets lie. [default: $BDBENCH_DATA]")
@click.option("--plugin", type=FILE, multiple=True, help="A file that registers a plugin.")
@click.option("--model", default="wrn16_1", show_default=True, metavar="SPEC", help=TRAINED)
@click.option("--epochs", default=10, show_default=True, metavar="N", help=TRAINED)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
def preview(attack: str, plugin: tuple[Path, ...], **options: Any) -> None:
    """Draw images before and after ATTACK, and measure what it changes.

    The data are poisoned as in a run with this seed. "Seen" and "energy left" are what the random
    crop, flip and cutout of the default recipe leave of the trigger.
    """
    from bdbench.figures import preview as previews

    load_plugins(plugin)
    for line in previews.preview(attack, **options):
        say(line)

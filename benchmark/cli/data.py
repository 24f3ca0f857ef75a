"""Data sets, and what attacks do to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bdbench.cli.group import FILE, FOLDER, Commands, cli, load_plugins, say

TRAINED = "For an attack that trains."
DATA = click.option(
    "--data", "folder", type=FOLDER, help="Where data sets lie. [default: $BDBENCH_DATA]"
)
PLUGIN = click.option("--plugin", type=FILE, multiple=True, help="A file that registers a plugin.")


@cli.group(cls=Commands)
def data() -> None:
    """Find, prepare and poison data sets."""


@data.command(name="ls")
@DATA
@PLUGIN
def data_ls(folder: Path | None, plugin: tuple[Path, ...]) -> None:
    """Show which data sets were found, and where."""
    from bdbench.cli.transfer import whereabouts
    from bdbench.datasets.registry import datasets
    from bdbench.storage.folders import roots

    load_plugins(plugin)
    for name in datasets.names():
        say(f"{name:<16} {whereabouts(datasets.build(name), roots(folder))}")
    say(f"searched: {', '.join(str(root) for root in roots(folder))}")


@data.command()
@click.argument("name")
@click.option("--url", metavar="URL", help="Of the file, or of the folder that holds the files.")
@click.option(
    "--data",
    "folder",
    type=FOLDER,
    help="Where data sets lie, and this one is put. [default: data in the cache folder]",
)
@PLUGIN
def get(name: str, url: str | None, folder: Path | None, plugin: tuple[Path, ...]) -> None:
    """Download a data set: cifar10, cifar100, gtsrb or imagenette.

    Files come from their official place, from below $BDBENCH_MIRROR, or from --url, and their
    checksum is fixed. What is there is not downloaded again, and a download that was broken off
    goes on.
    """
    from bdbench.cli import transfer
    from bdbench.datasets.registry import datasets

    load_plugins(plugin)
    transfer.get(datasets.build(name), folder, url)


@data.command()
@click.argument("name")
@DATA
@PLUGIN
def prepare(name: str, folder: Path | None, plugin: tuple[Path, ...]) -> None:
    """Decode a data set into the cache and show what is in it.

    NAME may be a spec, such as "folder(path='photos', size=64)".
    """
    from bdbench.cli.transfer import offer
    from bdbench.datasets.registry import datasets
    from bdbench.storage.cache import Cache
    from bdbench.storage.folders import cache_root, roots

    load_plugins(plugin)
    source = datasets.build(name)
    offer([source], folder)
    loaded = source.load(roots(folder), Cache(cache_root()))
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
@PLUGIN
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

"""`bdbench data`: data sets, and what attacks do to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bdbench.cli.group import Commands, cli, load_plugins, say
from bdbench.cli.options import DATA, DEVICE, FILE, FOLDER, PLUGIN


@cli.group(name="data", cls=Commands)
def data_commands() -> None:
    """Find, download, decode and poison data sets."""


@data_commands.command(name="ls")
@DATA
@PLUGIN
def data_ls(data: Path | None, plugin: tuple[Path, ...]) -> None:
    """List data sets and where they were found."""
    from bdbench.cli.transfer import whereabouts
    from bdbench.datasets.registry import datasets
    from bdbench.storage.folders import roots

    load_plugins(plugin)
    for name in datasets.names():
        say(f"{name:<16} {whereabouts(datasets.build(name), roots(data))}")
    say(f"searched: {', '.join(str(root) for root in roots(data))}")


@data_commands.command()
@click.argument("name")
@click.option(
    "--url", metavar="URL", help="Download from this file, or from a folder that holds the files."
)
@click.option(
    "--data",
    type=FOLDER,
    metavar="DIR",
    show_default="data in the cache folder",
    help="Put the data set into DIR.",
)
@PLUGIN
def get(name: str, url: str | None, data: Path | None, plugin: tuple[Path, ...]) -> None:
    """Download a data set: cifar10, cifar100, gtsrb or imagenette.

    Files come from --url, from the mirror $BDBENCH_MIRROR, or from their official address. Their
    checksums are fixed. Files that are already there are not downloaded again, and an interrupted
    download resumes.
    """
    from bdbench.cli import transfer
    from bdbench.datasets.registry import datasets

    load_plugins(plugin)
    transfer.get(datasets.build(name), data, url)


@data_commands.command()
@click.argument("name")
@DATA
@PLUGIN
def prepare(name: str, data: Path | None, plugin: tuple[Path, ...]) -> None:
    """Decode a data set into the cache.

    It prints sizes, classes and the hash of the images. NAME may be a spec, such as
    "folder(path='photos', size=64)".
    """
    from bdbench.cli.transfer import offer
    from bdbench.datasets.registry import datasets
    from bdbench.storage.cache import Cache
    from bdbench.storage.folders import cache_root, roots

    load_plugins(plugin)
    source = datasets.build(name)
    offer([source], data)
    loaded = source.load(roots(data), Cache(cache_root()))
    height, width = loaded.train.size
    say(f"data set        {datasets.canonical(name)}")
    say(f"training images {len(loaded.train):,} of {height} x {width} pixels")
    say(f"test images     {len(loaded.test):,}")
    say(f"classes         {loaded.train.num_classes}: {', '.join(loaded.class_names)}")
    say(f"sha256          {loaded.sha256}")
    for note in loaded.notes:
        say(f"note            {note}")


@data_commands.command()
@click.argument("attack")
@click.option(
    "--dataset", default="toy", show_default=True, metavar="SPEC", help="Poison this data set."
)
@click.option("--count", default=8, show_default=True, metavar="N", help="Draw N test images.")
@click.option("--seed", default=0, show_default=True, metavar="N", help="Poison with seed N.")
@click.option(
    "--out",
    type=FILE,
    metavar="FILE",
    show_default="preview-ATTACK.png",
    help="Draw to FILE: .png, .pdf or .svg.",
)
@DATA
@PLUGIN
@click.option(
    "--model",
    default="wrn16_1",
    show_default=True,
    metavar="SPEC",
    help="Train the attack with this model, if it trains.",
)
@click.option(
    "--epochs",
    default=10,
    show_default=True,
    metavar="N",
    help="Train the attack for N epochs, if it trains.",
)
@DEVICE
def preview(attack: str, plugin: tuple[Path, ...], **options: Any) -> None:
    """Draw images before and after ATTACK, and measure the difference.

    The data set is poisoned as in a run with this seed. "Seen" and "energy left" say how much of
    the trigger remains after the random crop, flip and cutout of the default recipe.
    """
    from bdbench.figures import preview as previews

    load_plugins(plugin)
    for line in previews.preview(attack, **options):
        say(line)

"""The cache."""

from __future__ import annotations

import click

from bdbench.cli.group import Commands, cli, say

KIND = click.argument("kind", required=False, metavar="[KIND]")


@cli.group(cls=Commands)
def cache() -> None:
    """List what the cache holds, and clear it."""


@cache.command(name="ls")
@KIND
def cache_ls(kind: str | None) -> None:
    """List how many entries of each kind the cache has, and their size.

    With a KIND, list its entries, last used first.
    """
    from bdbench.storage.cache import Cache
    from bdbench.storage.folders import cache_root
    from bdbench.storage.maintenance import listing

    say(listing(Cache(cache_root()), kind))


@cache.command(name="clear")
@KIND
@click.option(
    "--older-than",
    type=float,
    default=0.0,
    metavar="DAYS",
    help="Only entries that were not used for so many days.",
)
def cache_clear(kind: str | None, older_than: float) -> None:
    """Remove entries of all kinds or of one KIND. A run rebuilds what it needs.

    Figure data is kept unless KIND is embeddings: it comes back only if its cell is run again.
    Entries in use are kept, as are checkpoints of the last hour.
    """
    from bdbench.storage.cache import Cache
    from bdbench.storage.folders import cache_root
    from bdbench.storage.maintenance import clear

    say("\n".join(clear(Cache(cache_root()), kind, older_than)))

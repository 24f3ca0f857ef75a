"""The cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    pass
from bdbench.cli.group import Commands, cli, say


@cli.group(cls=Commands)
def cache() -> None:
    """See what the cache holds, check it and keep it small."""


@cache.command(name="ls")
@click.argument("kind", required=False, metavar="[KIND]")
def cache_ls(kind: str | None) -> None:
    """Show what there is and how large it is.

    Of a KIND, everything is listed, last used first.
    """
    from bdbench.storage.cache import Cache
    from bdbench.storage.folders import cache_root
    from bdbench.storage.maintenance import listing

    say(listing(Cache(cache_root()), kind))


@cache.command(name="verify")
def cache_verify() -> int:
    """Compare everything with its hashes. Nothing is removed.

    Exit codes: 0 all is whole, 1 something is damaged; a run makes it anew.
    """
    from bdbench.storage.cache import Cache
    from bdbench.storage.folders import cache_root
    from bdbench.storage.maintenance import verify

    lines, whole = verify(Cache(cache_root()))
    say("\n".join(lines))
    return 0 if whole else 1


@cache.command()
@click.option("--max-size", metavar="SIZE", help="Such as 500M or 10G: remove until all fits.")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only this; repeatable.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, remove nothing.")
def gc(max_size: str | None, kinds: tuple[str, ...], dry_run: bool) -> None:
    """Remove what no run can use, and more with --max-size.

    The first is what is damaged or half written, and checkpoints that are a week old; the other is
    what was not used for the longest time. What figures are drawn from stays unless --kind
    artefacts is given: only running a cell makes it anew. What a command holds that runs now stays.
    """
    from bdbench.storage.cache import Cache
    from bdbench.storage.folders import cache_root
    from bdbench.storage.maintenance import sweep

    say("\n".join(sweep(Cache(cache_root()), kinds, max_size, dry_run)))

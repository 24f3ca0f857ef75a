"""The group of all commands, and what several of them do."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import shown

if TYPE_CHECKING:
    from bdbench.records.beside import Neighbour
    from bdbench.records.record import Record


class Commands(click.Group):
    """A group that suggests the nearest command for an unknown one, and names all without one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not self.invoke_without_command:
            known = ", ".join(self.list_commands(ctx))
            raise click.UsageError(f"{ctx.command_path} needs a command; choose one of: {known}")
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None:
            guess = spec.did_you_mean(args[0], self.list_commands(ctx))
            raise click.UsageError(f"unknown command {args[0]!r}{guess}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="bdbench")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Compare backdoor defenses for image classifiers.

    `bdbench run` poisons the training data, trains with each defense, evaluates every network and
    prints the leaderboard. It never repeats a finished cell: run the same command again to resume.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def say(text: str, err: bool = False) -> None:
    """Print text of any number of lines, with control characters escaped."""
    print(shown(text), file=sys.stderr if err else sys.stdout, flush=True)


def warn_left_out(damaged: Iterable[str]) -> bool:
    """Print a line for each damaged record. Returns whether there is any."""
    lines = list(damaged)
    for line in lines:
        say(f"bdbench: {line}; it is left out", err=True)
    return bool(lines)


def records_in(results: Path) -> tuple[list[Record], bool]:
    """The readable records of a folder, and whether any was damaged and left out."""
    from bdbench.records.files import read_all

    records, damaged = read_all(results)
    return records, warn_left_out(damaged)


def neighbours_of(folders: Sequence[Path], own: Path) -> tuple[tuple[Neighbour, ...], bool]:
    """The readable records of other folders, and whether any was damaged and left out."""
    from bdbench.records.beside import neighbours

    found = neighbours(folders, own)
    return found, warn_left_out(line for other in found for line in other.damaged)


def load_plugins(plugins: Sequence[Path]) -> None:
    """Import plugin files. Raises `InvalidInput` for one that fails."""
    from bdbench.cells.plugins import load_plugin

    for path in plugins:
        load_plugin(path)

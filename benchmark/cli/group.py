"""The group of all commands, and what several of them need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import shown
from bdbench.storage.folders import expanded

if TYPE_CHECKING:
    from bdbench.records.beside import Neighbour
    from bdbench.records.record import Record


class UserPath(click.Path):
    """A path as users write it: ~ is the home folder. What no system takes for a path is said here,
    and not by whoever opens it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "\0" in str(value):
            self.fail(f"{str(value)!r} is no path", param, ctx)
        return super().convert(expanded(Path(value)), param, ctx)


FOLDER = UserPath(path_type=Path, file_okay=False)
FILE = UserPath(path_type=Path, dir_okay=False)


class Commands(click.Group):
    """A group that knows the nearest command to a wrong one."""

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

    `bdbench run` poisons, trains, defends and prints the leaderboard. A finished cell is never
    run twice: the same command goes on where it was stopped.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def say(text: str, err: bool = False) -> None:
    """Print text of several lines; what a terminal would obey stands written out."""
    click.echo(shown(text), err=err)


def records_in(results: Path) -> tuple[list[Record], bool]:
    """The records of a folder, and whether any was damaged, which is said."""
    from bdbench.records.files import read_all

    records, damaged = read_all(results)
    for line in damaged:
        say(f"bdbench: {line}; it is left out", err=True)
    return records, bool(damaged)


def beside(folders: Sequence[Path], own: Path) -> tuple[tuple[Neighbour, ...], bool]:
    """The records of other folders, and whether any was damaged, which is said."""
    from bdbench.records.beside import neighbours

    found = neighbours(folders, own)
    damaged = [line for other in found for line in other.damaged]
    for line in damaged:
        say(f"bdbench: {line}; it is left out", err=True)
    return found, bool(damaged)


def load_plugins(plugins: Sequence[Path]) -> None:
    from bdbench.models.plugins.registry import load_file

    for path in plugins:
        load_file(path)

"""The options that several commands share, and the types of their values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from bdbench.storage.folders import expanded


class UserPath(click.Path):
    """A path as users write it: ~ is the home folder.

    An empty path, which would be the current folder, and paths with NUL bytes are rejected before
    anything opens them.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("the path is empty; is a variable not set?", param, ctx)
        if "\0" in str(value):
            self.fail(f"{str(value)!r} is not a path: it contains a NUL byte", param, ctx)
        return super().convert(expanded(Path(value)), param, ctx)


class Jobs(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of cells, or None for `auto`."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in (None, "auto"):
            return None
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor auto", param, ctx)


def selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds an option for each of `AXES`, by which a command shows some of the cells only."""
    for axis, nouns in reversed(AXES.items()):
        text = f"Show only these {nouns}; repeatable."
        command = click.option(f"--{axis}", multiple=True, metavar="SPEC", help=text)(command)
    return command


ANY_PATH = UserPath(path_type=Path)
FOLDER = UserPath(path_type=Path, file_okay=False)
FILE = UserPath(path_type=Path, dir_okay=False)

DATA = click.option(
    "--data",
    type=FOLDER,
    metavar="DIR",
    show_default="$BDBENCH_DATA",
    help="Look for data sets in DIR first.",
)
AXES = {
    "attack": "attacks",
    "defense": "defenses",
    "dataset": "data sets",
    "model": "models",
    "recipe": "recipes",
}
"""Options that select cells, and what they name."""
PLUGIN = click.option(
    "--plugin",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="Load a file that registers plugins; repeatable.",
)
RESULTS = click.option(
    "--results",
    type=FOLDER,
    metavar="DIR",
    default=Path("results/quick"),
    show_default=True,
    help="Read the records in DIR.",
)
DEVICE = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Use this device: auto, cpu, cuda or cuda:1.",
)
SEEDS = click.option("--seeds", type=int, metavar="N", help="Use seeds 0 to N-1.")
SEED = click.option(
    "--seed", type=int, multiple=True, metavar="N", help="Use exactly seed N; repeatable."
)
EPOCHS = click.option("--epochs", type=int, metavar="N", help="Set the epochs of the recipe.")
JOBS = click.option(
    "--jobs",
    type=Jobs(),
    metavar="N",
    default="auto",
    show_default=True,
    help="Run N cells at once.",
)
THREADS = click.option(
    "--threads", type=int, metavar="N", show_default="1", help="Give each cell N CPU threads."
)
IN_PROCESS = click.option(
    "--in-process", is_flag=True, help="Run the cells in this process, for debugging."
)
LIMIT = click.option(
    "--limit",
    type=float,
    metavar="SECONDS",
    help="Stop a cell that takes longer; the next run resumes it.",
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="List the cells and their cost; run none.")
STALE = click.option("--stale", is_flag=True, help="Also run cells whose code has changed.")
SAVE = click.option(
    "--save", is_flag=True, help="Save the network of every cell to RESULTS/networks."
)
REACTIVATE = click.option(
    "--reactivate",
    is_flag=True,
    help="Also measure P-ASR: whether the backdoor comes back after fine-tuning.",
)


def pop_fields(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """Remove from `options` those named like a field of the dataclass `kind`, and return them."""
    names = options.keys() & {field.name for field in fields(kind)}
    return {name: options.pop(name) for name in names}

"""The machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    pass
from bdbench.cli.group import FOLDER, cli, say


@cli.command()
@click.option("--data", "folder", type=FOLDER, help="Where data sets lie. [default: $BDBENCH_DATA]")
def doctor(folder: Path | None) -> int:
    """Show versions, devices and folders, and what would stand in the way of a run."""
    from bdbench.cli.diagnosis import diagnosis

    lines, fine = diagnosis(folder)
    say("\n".join(lines))
    return 0 if fine else 1

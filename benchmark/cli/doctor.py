"""`bdbench doctor`."""

from __future__ import annotations

from pathlib import Path

from bdbench.cli.group import cli, say
from bdbench.cli.options import DATA


@cli.command()
@DATA
def doctor(data: Path | None) -> int:
    """Show what would prevent a run on this machine.

    It lists versions, devices, folders and data sets, and marks problems.

    Exit codes: 0 no problems, 1 a line says PROBLEM or NOT SAFE.
    """
    from bdbench.cli.diagnosis import diagnosis

    lines, fine = diagnosis(data)
    say("\n".join(lines))
    return 0 if fine else 1

"""How commands end: they run the cells of a plan, write the leaderboard and print it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bdbench.cli.group import records_in, say, warn_left_out
from bdbench.records.beside import Origins, join
from bdbench.tables.write import Leaderboard, leaderboard, write_leaderboard

if TYPE_CHECKING:
    from bdbench.records.record import Record
    from bdbench.running.run import Plan


def carry_out(plan: Plan, dry_run: bool, columns: Sequence[str] = ()) -> int:
    """Run the missing cells of a plan and print the leaderboard, or only list the cells. Returns
    the exit code.

    columns: those to add for each attack of a leaderboard of the plan's cells alone; without any,
        the leaderboard of all records is printed as it is written
    """
    from bdbench.machine.terminal import Terminal
    from bdbench.running.run import execute

    if dry_run:
        say("\n".join(plan.lines()))
        return 0
    code = execute(plan, Terminal()).code
    own, damaged = records_in(plan.results)
    more = warn_left_out(line for other in plan.beside for line in other.damaged)
    records, origins = join(own, plan.beside, plan.results, plan.asked)
    keys = {cell.key for cell in plan.cells}
    printed = [each for each in records if each.key in keys] if columns else records
    if printed:
        board = leaderboard(printed, columns=columns) if columns else None
        show_leaderboard(records, plan.results, origins, board)
    return max(code, int(damaged or more))


def show_leaderboard(
    records: Sequence[Record],
    folder: Path,
    origins: Origins,
    board: Leaderboard | None = None,
    label: str | None = None,
) -> None:
    """Write the leaderboard of some records below a folder and print it. Raises `InvalidInput` as
    `write_leaderboard` does.

    board: the one to print, if it is another
    label: of the table in LaTeX, which is then written too
    """
    paths = write_leaderboard(records, folder, origins, label)
    show_table(paths, board.markdown() if board else "")


def show_table(paths: Iterable[Path], text: str = "") -> None:
    """Print a table that was written, or `text` in its place, and where it was written."""
    written = list(paths)
    markdown = next(path for path in written if path.suffix == ".md")
    say(text or markdown.read_text(encoding="utf-8"))
    say(f"written: {', '.join(map(str, written))}")

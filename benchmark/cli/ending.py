"""How commands end: they run the cells of a plan, write the leaderboard and print it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bdbench.cli.group import records_in, say, warn_left_out
from bdbench.records.beside import Origins, join
from bdbench.storage.atomic import Unusable
from bdbench.tables.write import Leaderboard, leaderboard, leaderboard_files, write_files

if TYPE_CHECKING:
    from bdbench.records.record import Record
    from bdbench.running.plan import Plan


def carry_out(plan: Plan, dry_run: bool, columns: Sequence[str] = ()) -> int:
    """Run the missing cells of a plan and print the leaderboard, or only list the cells. Returns
    the exit code.

    columns: those to add for each attack of a leaderboard of the plan's cells alone; without any,
        the leaderboard of all records is printed as it is written
    """
    from bdbench.machine.terminal import Terminal
    from bdbench.running.run import execute

    plan.check_table()
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
        try:
            show_leaderboard(records, plan.results, origins, board)
        except Unusable as error:
            # The records are there, so the table can be made again.
            say(f"bdbench: {error}", err=True)
            code = max(code, 1)
    return max(code, int(damaged or more))


def show_leaderboard(
    records: Sequence[Record],
    folder: Path,
    origins: Origins,
    board: Leaderboard | None = None,
    label: str | None = None,
    ending: str = "",
) -> None:
    """Print the leaderboard of some records, then write it below a folder. Raises as
    `leaderboard_files` and `write_files` do.

    board: the one to print, if it is another
    label: of the table in LaTeX, which is then written too
    ending: see `show_table`
    """
    files = leaderboard_files(records, folder, origins, label)
    show_table(files, folder, board.markdown() if board else "", ending)


def show_table(files: Mapping[str, str], folder: Path, text: str = "", ending: str = "") -> None:
    """Print a table, or `text` in its place, then write its files, given by name. Raises as
    `write_files` does.

    ending: of their names, before the dot
    """
    say(text or next(files[name] for name in files if name.endswith(".md")))
    files = {name.replace(".", f"{ending}."): content for name, content in files.items()}
    say(f"written: {', '.join(map(str, write_files(files, folder)))}")

"""The commands that read records: tables, figures, pages."""

from __future__ import annotations

from pathlib import Path

import click

from bdbench.cli.group import cli, load_plugins, neighbours_of, records_in, say
from bdbench.cli.options import DATA, FOLDER, PLUGIN, RESULTS, selection
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import require


@cli.command()
@click.argument("which", metavar="[leaderboard|1|2|3|5]", default="leaderboard")
@RESULTS
@selection
@click.option(
    "--against",
    type=FOLDER,
    multiple=True,
    metavar="DIR",
    help="Add the records in DIR to the leaderboard; repeatable.",
)
@click.option("--latex", is_flag=True, help="Also write the table as LaTeX.")
@click.option("--label", default="", metavar="TEXT", help="Set the LaTeX label of the leaderboard.")
@click.option(
    "--sort", default="", metavar="COLUMN", help='Sort by a column, such as "badnets ASR".'
)
@click.option(
    "--columns", multiple=True, metavar="NAME", help="Add columns for each attack; repeatable."
)
def table(
    which: str,
    results: Path,
    against: tuple[Path, ...],
    latex: bool,
    label: str,
    sort: str,
    columns: tuple[str, ...],
    **wanted: tuple[str, ...],
) -> int:
    """Make a table from records and print it.

    It is also written as CSV and Markdown. Making a table never trains.

    1, 2, 3 and 5 are the tables of the paper in its layout, with the printed numbers beside ours.

    A SPEC is a name with or without fields, and selects every plugin that agrees with it. No
    defense stays, as the others are compared with it. The files of a selection have names of their
    own, such as leaderboard-selection.tex.

    --against adds to the leaderboard what DIR has of the same data sets, models, recipes, attacks
    and seeds. Lines below the table say what was left out.

    --sort and --columns change the printed leaderboard, not the files. COLUMN is named by its
    headings: "badnets ASR", "mean CA", DER. NAME is floor, R-Acc, "CA interval", "ASR interval",
    TPR, FPR, AUROC, or all; "P-ASR interval" where a record has a P-ASR (run --reactivate).
    """
    known = ["leaderboard", "1", "2", "3", "5"]
    require(which in known, f"unknown table {which!r}{spec.did_you_mean(which, known)}")
    require(latex or not label, "--label is for --latex: add it")
    own_layout = bool(sort or columns)
    if which != "leaderboard":
        require(not own_layout, "--sort and --columns are for the leaderboard: leave them out")
        require(not against, "--against is for the leaderboard: leave it out")
        require(not label, "--label is for the leaderboard: leave it out")
    from bdbench.cli.ending import show_leaderboard, show_table
    from bdbench.records.beside import join
    from bdbench.tables.write import leaderboard, table_files

    own, damaged = records_in(results)
    others, more = neighbours_of(against, results)
    records, origins = join(own, others, results)
    ending = ""
    if any(wanted.values()):
        from bdbench.tables.selection import select

        selection = select(records, results, wanted)
        records = [record for group in selection.with_baseline for record in group.records]
        ending = selection.ending
    if which == "leaderboard":
        board = leaderboard(records, sort, columns, origins) if own_layout else None
        show_leaderboard(records, results, origins, board, label if latex else None, ending)
    else:
        show_table(table_files(int(which), records, results, latex), results, ending=ending)
    return 1 if damaged or more else 0


@cli.command()
@click.option(
    "--results",
    type=FOLDER,
    metavar="DIR",
    default=Path("results/table1-cifar10"),
    show_default=True,
    help="Read the records in DIR.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")
def verify(results: Path, as_json: bool) -> int:
    """Compare records with the numbers of the CBD paper.

    The table shows the difference (ours minus paper), whether the printed number is inside our 95 %
    interval, and every known deviation from the paper's setup. Beside it stand the numbers of
    BackdoorBench and the FT-SAM paper for the same attack, poisoning rate and data set; below it,
    published numbers that contradict each other. All of it is written to tables/verify.md and
    verify.csv. Comparing never trains.
    """
    from bdbench.tables.verify import verified

    records, damaged = records_in(results)
    made = verified(records, results)
    say(made.json() if as_json else made.markdown())
    made.write(results)
    return 1 if damaged else 0


@cli.command()
@click.argument("folders", nargs=-1, required=True, type=FOLDER, metavar="DIR...")
@click.option(
    "--results",
    type=FOLDER,
    metavar="DIR",
    default=Path("results/merged"),
    show_default=True,
    help="Write the records to DIR.",
)
def merge(folders: tuple[Path, ...], results: Path) -> int:
    """Merge the records of several folders into one.

    The folders may come from several machines.

    If a cell has several records, one is kept: one that did not fail before one that did, then one
    that adds a P-ASR or curves to the same result, then that of the first folder. The folder
    --results itself comes before all others.

    Exit codes: 0 success, 1 a damaged record was left out.
    """
    from bdbench.records.merge import merge as merge_records

    lines, complete = merge_records(folders, results)
    say("\n".join(lines))
    return 0 if complete else 1


@cli.command()
@click.argument("which", metavar="tsne|losses|curves|pareto|plane|sweep|triggers")
@RESULTS
@selection
@click.option(
    "--format",
    "formats",
    multiple=True,
    metavar="png|svg",
    show_default="both",
    help="Write only this format.",
)
@click.option(
    "--field", default="", metavar="NAME", help="Draw a sweep against this field, such as t1."
)
@DATA
@PLUGIN
def figure(
    which: str,
    results: Path,
    formats: tuple[str, ...],
    field: str,
    data: Path | None,
    plugin: tuple[Path, ...],
    **wanted: tuple[str, ...],
) -> int:
    """Draw a figure from records.

    It is written as PNG and SVG, with its data as CSV. Drawing never trains.

    \b
    pareto    training time, ASR and loss of CA of all defenses
    plane     ASR against CA of all defenses, a panel for each attack
    sweep     CA and ASR against a field that differs between specs, such as t1 of cbd
    curves    CA and ASR by epoch
    losses    losses of clean and poisoned training images by epoch
    tsne      embeddings before and after training
    triggers  an image with the trigger of each attack

    A SPEC is a name with or without fields, and selects every plugin that agrees with it. The
    files of a selection have names of their own, such as plane-selection.png.
    """
    from bdbench.figures import FORMATS, make

    load_plugins(plugin)
    records, damaged = records_in(results)
    for line in make(which, records, results, wanted, formats or FORMATS, data, field):
        say(line)
    return 1 if damaged else 0


@cli.command()
@RESULTS
@click.option(
    "--compare",
    type=FOLDER,
    metavar="DIR",
    help="Add a comparison with the records in DIR.",
)
@click.option(
    "--out",
    type=FOLDER,
    metavar="DIR",
    show_default="report in the folder of the results",
    help="Write the pages to DIR.",
)
def report(results: Path, compare: Path | None, out: Path | None) -> int:
    """Write a report of HTML pages from records.

    It has the leaderboard, heat maps and a page for each cell, and needs no network connection.
    Writing it never trains.
    """
    from bdbench.report.site import write_report

    records, damaged = records_in(results)
    others, more = records_in(compare) if compare else ([], False)
    first = write_report(records, results, out, (compare, others) if compare else None)
    say(f"written: {first}")
    return 1 if damaged or more else 0


@cli.command()
@click.argument("key")
@click.option(
    "--results",
    type=FOLDER,
    metavar="DIR",
    show_default="all folders in results/",
    help="Read the records in DIR.",
)
def explain(key: str, results: Path | None) -> None:
    """Show everything that a record holds.

    The last line is the command that runs its cell again. KEY is the key of a cell or its first
    digits.
    """
    from bdbench.cli.explanation import explanation

    say(explanation(key, results))

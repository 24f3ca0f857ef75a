"""What is made of records: tables, figures, pages."""

from __future__ import annotations

from pathlib import Path

import click

from bdbench.cli.group import FILE, FOLDER, beside, cli, load_plugins, records_in, say
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import require


@cli.command()
@click.argument("which", metavar="[leaderboard|1|2|3|5]", default="leaderboard")
@click.option("--results", type=FOLDER, default=Path("results/quick"), show_default=True)
@click.option("--against", type=FOLDER, multiple=True, help="Other records, to stand beside.")
@click.option("--latex", is_flag=True, help="As LaTeX, too.")
@click.option("--label", default="", metavar="TEXT", help="Of the leaderboard in LaTeX.")
@click.option("--sort", default="", metavar="COLUMN", help='Sort by "badnets ASR", seconds, ...')
@click.option("--columns", multiple=True, metavar="NAME", help="More of each attack; repeatable.")
def table(
    which: str,
    results: Path,
    against: tuple[Path, ...],
    latex: bool,
    label: str,
    sort: str,
    columns: tuple[str, ...],
) -> int:
    """Make a table from records, as CSV and Markdown, and print it. It never trains.

    1, 2, 3 and 5 are those of the paper, in its layout, with the printed number beside ours.

    --against DIR, repeatable, puts into the leaderboard what DIR has of the same data sets, models,
    recipes, attacks and seeds, and says what is left out.

    --sort and --columns change how the leaderboard is printed, not the files. A column is named by
    what stands above it: "badnets ASR", "mean CA", DER. NAME is floor, R-Acc, "CA interval", "ASR
    interval", TPR, FPR or all.
    """
    known = ["leaderboard", "1", "2", "3", "5"]
    require(which in known, f"unknown table {which!r}{spec.did_you_mean(which, known)}")
    require(latex or not label, "--label is for --latex: add it")
    plain = not sort and not columns
    require(plain or which == "leaderboard", "--sort and --columns are for the leaderboard")
    require(not against or which == "leaderboard", "--against is for the leaderboard")
    require(not label or which == "leaderboard", "--label is for the leaderboard")
    from bdbench.records.beside import join
    from bdbench.tables.write import leaderboard, write_leaderboard, write_table

    own, damaged = records_in(results)
    others, more = beside(against, results)
    records, origins = join(own, others, results)
    made = None if plain else leaderboard(records, sort, columns, origins)
    if which == "leaderboard":
        paths = write_leaderboard(records, results, origins, label if latex else None)
    else:
        paths = write_table(int(which), records, results, latex)
    written = next(path for path in paths if path.suffix == ".md")
    say(made.markdown() if made else written.read_text(encoding="utf-8"))
    say(f"written: {', '.join(map(str, paths))}")
    return 1 if damaged or more else 0


@cli.command()
@click.option("--results", type=FOLDER, default=Path("results/table1-cifar10"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")
def verify(results: Path, as_json: bool) -> int:
    """Compare records with the numbers that the CBD paper prints. It never trains.

    Shown are the difference, whether the printed number is inside our 95 % interval, and the
    reasons that are known. Beside them stands what BackdoorBench and the FT-SAM paper have for the
    same attack, poisoning rate and data set, and below them where published numbers contradict each
    other. The same is written to tables/verify.md and verify.csv.
    """
    from bdbench.tables.verify import write_verification

    records, damaged = records_in(results)
    made = write_verification(records, results)
    say(made.json() if as_json else made.markdown())
    return 1 if damaged else 0


@cli.command()
@click.argument("folders", nargs=-1, required=True, type=FOLDER, metavar="DIR...")
@click.option("--results", type=FOLDER, default=Path("results/merged"), show_default=True)
def merge(folders: tuple[Path, ...], results: Path) -> int:
    """Gather the records of several folders, from other machines for example, in one.

    Of several records of a cell one is kept: rather one that did not fail, then that of the first
    folder, where the folder of the results itself comes before all others. Exit code 1 where a
    damaged record was left out.
    """
    from bdbench.records.merge import merge as gather

    lines, whole = gather(folders, results)
    say("\n".join(lines))
    return 0 if whole else 1


@cli.command()
@click.argument("which", metavar="tsne|losses|curves|pareto|plane|sweep|triggers")
@click.option("--results", type=FOLDER, default=Path("results/quick"), show_default=True)
@click.option("--attack", multiple=True, metavar="SPEC", help="Only this attack; repeatable.")
@click.option("--defense", multiple=True, metavar="SPEC", help="Only this defense; repeatable.")
@click.option("--dataset", multiple=True, metavar="SPEC", help="Which, where there are several.")
@click.option("--model", multiple=True, metavar="SPEC", help="Which, where there are several.")
@click.option("--recipe", multiple=True, metavar="SPEC", help="Which, where there are several.")
@click.option("--format", "formats", multiple=True, metavar="png|svg", help="Default: both.")
@click.option("--field", default="", metavar="NAME", help="For sweep: a field, such as t1.")
@click.option("--data", type=FOLDER, help="Where data sets lie, for triggers.")
@click.option("--plugin", type=FILE, multiple=True, help="A file that registers a plugin.")
def figure(
    which: str,
    results: Path,
    formats: tuple[str, ...],
    field: str,
    data: Path | None,
    plugin: tuple[Path, ...],
    **wanted: tuple[str, ...],
) -> int:
    """Draw a figure from records, as PNG and SVG with its data as CSV. It never trains.

    pareto: time, ASR and lost CA of all defenses. plane: ASR against CA of all defenses, for each
    attack. sweep: CA and ASR against a field that differs between specs, such as t1 of cbd. curves:
    CA and ASR by epoch. losses: those of clean and poisoned training images by epoch. tsne:
    embeddings before and after training. triggers: an image with the trigger of each attack. A SPEC
    is a name with or without fields, and stands for all that agree with it.
    """
    from bdbench.figures import FORMATS, make

    load_plugins(plugin)
    records, damaged = records_in(results)
    for line in make(which, records, results, wanted, formats or FORMATS, data, field):
        say(line)
    return 1 if damaged else 0


@cli.command()
@click.option("--results", type=FOLDER, default=Path("results/quick"), show_default=True)
@click.option("--compare", type=FOLDER, help="Other results, for a page that compares the two.")
@click.option("--out", type=FOLDER, help="Default: report/ in the folder of the results.")
def report(results: Path, compare: Path | None, out: Path | None) -> int:
    """Make a folder of HTML pages from records: leaderboard, heat maps, a page for each cell.

    It opens in a browser without a network. It never trains.
    """
    from bdbench.report.site import write_report

    records, damaged = records_in(results)
    others, more = records_in(compare) if compare else ([], False)
    first = write_report(records, results, out, (compare, others) if compare else None)
    say(f"written: {first}")
    return 1 if damaged or more else 0


@cli.command()
@click.argument("key")
@click.option("--results", type=FOLDER, help="Default: all folders below results/.")
def explain(key: str, results: Path | None) -> None:
    """Show everything behind one cell. KEY is the name of a record or its first digits."""
    from bdbench.cli.explanation import explanation

    say(explanation(key, results))

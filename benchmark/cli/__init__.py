"""The command line. What a command needs is imported when it runs: help must answer at once."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from bdbench.cells.suites import suite
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput, check, one_line

if TYPE_CHECKING:
    from bdbench.records.record import Record


class PathWithoutNul(click.Path):
    """What no system takes for a path is said here, and not by whoever opens it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "\0" in str(value):
            self.fail(f"{str(value)!r} is no path", param, ctx)
        return super().convert(value, param, ctx)


FOLDER = PathWithoutNul(path_type=Path, file_okay=False)
FILE = PathWithoutNul(path_type=Path, dir_okay=False)
TRAINED = "For an attack that trains."


class Commands(click.Group):
    """A group that knows the nearest command to a wrong one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None:
            guess = spec.did_you_mean(args[0], self.list_commands(ctx))
            raise click.UsageError(f"unknown command {args[0]!r}{guess}")
        return super().resolve_command(ctx, args)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 fine, 1 a cell failed, 2 bad input, 130 stopped."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # Also where a shell started this in the background, which has it ignore the first.
        signal.signal(number, _stop)
    try:
        code = cli.main(args=arguments, prog_name="bdbench", standalone_mode=False)
        return int(code or 0)
    except click.ClickException as error:
        return _refuse(error.format_message())
    except InvalidInput as error:
        return _refuse(str(error))
    except (KeyboardInterrupt, click.Abort):
        click.echo("bdbench: stopped; the same command goes on from here", err=True)
        return 130


def entry() -> NoReturn:
    """The `bdbench` command."""
    warnings.showwarning = lambda message, *where: click.echo(
        f"bdbench: warning: {one_line(str(message))}", err=True
    )
    sys.exit(main())


def _stop(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _refuse(message: str) -> int:
    click.echo(f"bdbench: {one_line(message)}", err=True)
    return 2


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


@cli.command()
@click.argument("name", metavar="[SUITE]", default="quick")
@click.option("--dataset", multiple=True, metavar="SPEC", help="Replace the data sets.")
@click.option("--model", multiple=True, metavar="SPEC", help="Replace the models.")
@click.option("--attack", multiple=True, metavar="SPEC", help="Replace the attacks.")
@click.option("--defense", multiple=True, metavar="SPEC", help="Replace the defenses.")
@click.option("--seeds", type=int, metavar="N", help="Run seeds 0 to N-1.")
@click.option("--recipe", metavar="SPEC", help='Replace the recipe, "recipe(epochs=20, ...)".')
@click.option("--epochs", type=int, metavar="N", help="Length of the recipe.")
@click.option("--train-images", type=int, metavar="N", help="Train on a fixed subset.")
@click.option(
    "--loader", metavar="NAME", help="resident or reference: how public code makes batches."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
@click.option("--precision", metavar="NAME", help="auto, fp32 or bf16; the suite's by default.")
@click.option("--results", type=FOLDER, help="Default: results/SUITE.")
@click.option("--data", type=FOLDER, help="Where data sets lie. [default: $BDBENCH_DATA]")
@click.option("--plugin", type=FILE, multiple=True, help="A file that registers a plugin.")
@click.option("--jobs", type=int, metavar="N", help="Run N cells at once, in N processes.")
@click.option("--engine", default="local", show_default=True, help="local, ray or slurm.")
@click.option("--cores", type=int, metavar="N", help="Cores for each cell on a cluster.")
@click.option("--gpus", type=float, metavar="N", help="GPUs for each cell on a cluster: 1 or 0.25.")
@click.option("--option", multiple=True, metavar="KEY=VALUE", help="For the cluster's library.")
@click.option("--budget", type=float, metavar="SECONDS", help="Start no cell that would not fit.")
@click.option("--limit", type=float, metavar="SECONDS", help="Stop any cell that takes longer.")
@click.option("--dry-run", is_flag=True, help="List the cells and their cost, run none.")
@click.option("--stale", is_flag=True, help="Also run cells whose code has changed.")
@click.option("--curves", is_flag=True, help="Evaluate after every epoch.")
def run(name: str, **options: Any) -> int:
    """Run the cells of SUITE that have no record yet, then print the leaderboard.

    SUITE is `quick` unless given; `bdbench list suites` shows the others. The options --dataset,
    --model, --attack and --defense replace that axis of the suite and may be repeated. A SPEC is
    a name with or without fields, such as blend or "blend(alpha=0.1)".

    Exit codes: 0 all fine, 1 a cell failed, 2 bad usage or configuration, 130 stopped.
    """
    chosen = suite(name)
    from bdbench.cells.overrides import Changes
    from bdbench.running.engines.options import Place, options_of
    from bdbench.running.run import run_suite

    place = Place(**_named(Place, options), options=options_of(options.pop("option")))
    changes = Changes(**_named(Changes, options))
    return run_suite(name, changes.applied_to(chosen), place, **options)


def _named(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """The options that have the names of fields of `kind`, taken out of `options`."""
    names = options.keys() & {field.name for field in fields(kind)}
    return {name: options.pop(name) for name in names}


@cli.command(name="list")
@click.argument("kinds", nargs=-1, metavar="[attacks|defenses|models|datasets|suites]...")
@click.option("--plugin", type=FILE, multiple=True, help="A file that registers a plugin.")
def list_plugins(kinds: tuple[str, ...], plugin: tuple[Path, ...]) -> None:
    """Show what there is: names, one line each, and where it comes from."""
    known = ["attacks", "defenses", "models", "datasets", "suites"]
    for kind in kinds:
        check(kind in known, f"unknown kind {kind!r}{spec.did_you_mean(kind, known)}")
    from bdbench.cli.describe import catalogue

    _load(plugin)
    click.echo(catalogue(list(kinds) or known))


@cli.command()
@click.argument("name")
@click.option("--plugin", type=FILE, multiple=True, help="A file that registers a plugin.")
def describe(name: str, plugin: tuple[Path, ...]) -> None:
    """Show fields, defaults, source and cost of an attack, defense, model, data set or suite."""
    from bdbench.cli.describe import description

    _load(plugin)
    click.echo(description(name))


@cli.command()
@click.argument("which", metavar="[leaderboard|1|2|3|5]", default="leaderboard")
@click.option("--results", type=FOLDER, default=Path("results/quick"), show_default=True)
@click.option("--latex", is_flag=True, help="A table of the paper as LaTeX, too.")
def table(which: str, results: Path, latex: bool) -> int:
    """Make a table from records, as CSV and Markdown, and print it. It never trains.

    1, 2, 3 and 5 are those of the paper, in its layout, with the printed number beside ours.
    """
    known = ["leaderboard", "1", "2", "3", "5"]
    check(which in known, f"unknown table {which!r}{spec.did_you_mean(which, known)}")
    check(not latex or which != "leaderboard", "--latex is for the tables of the paper: 1, 2, 3, 5")
    from bdbench.tables.write import write_leaderboard, write_table

    records, damaged = _records(results)
    if which == "leaderboard":
        paths = write_leaderboard(records, results)
    else:
        paths = write_table(int(which), records, results, latex)
    click.echo(next(path for path in paths if path.suffix == ".md").read_text())
    click.echo(f"written: {', '.join(map(str, paths))}")
    return 1 if damaged else 0


@cli.command()
@click.option("--results", type=FOLDER, default=Path("results/cifar10-small"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")
def verify(results: Path, as_json: bool) -> int:
    """Compare records with the numbers that the CBD paper prints. It never trains.

    Shown are the difference, whether the printed number is inside our 95 % interval, and the
    reasons that are known. The same is written to tables/verify.md and verify.csv.
    """
    from bdbench.tables.verify import write_verification

    records, damaged = _records(results)
    made = write_verification(records, results)
    click.echo(made.json() if as_json else made.markdown())
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
    click.echo("\n".join(lines))
    return 0 if whole else 1


@cli.command()
@click.argument("which", metavar="tsne|losses|curves|pareto|triggers")
@click.option("--results", type=FOLDER, default=Path("results/quick"), show_default=True)
@click.option("--attack", multiple=True, metavar="SPEC", help="Only this attack; repeatable.")
@click.option("--defense", multiple=True, metavar="SPEC", help="Only this defense; repeatable.")
@click.option("--dataset", multiple=True, metavar="SPEC", help="Which, where there are several.")
@click.option("--model", multiple=True, metavar="SPEC", help="Which, where there are several.")
@click.option("--recipe", multiple=True, metavar="SPEC", help="Which, where there are several.")
@click.option("--format", "formats", multiple=True, metavar="png|svg", help="Default: both.")
@click.option("--data", type=FOLDER, help="Where data sets lie, for triggers.")
@click.option("--plugin", type=FILE, multiple=True, help="A file that registers a plugin.")
def figure(
    which: str,
    results: Path,
    formats: tuple[str, ...],
    data: Path | None,
    plugin: tuple[Path, ...],
    **wanted: tuple[str, ...],
) -> int:
    """Draw a figure from records, as PNG and SVG with its data as CSV. It never trains.

    pareto: time, ASR and lost CA of all defenses. curves: CA and ASR by epoch. losses: those of
    clean and poisoned training images by epoch. tsne: embeddings before and after training.
    triggers: an image with the trigger of each attack. A SPEC is a name with or without fields,
    and stands for all that agree with it.
    """
    from bdbench.figures import FORMATS, make

    _load(plugin)
    records, damaged = _records(results)
    for line in make(which, records, results, wanted, formats or FORMATS, data):
        click.echo(line)
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

    records, damaged = _records(results)
    others, more = _records(compare) if compare else ([], False)
    first = write_report(records, results, out, (compare, others) if compare else None)
    click.echo(f"written: {first}")
    return 1 if damaged or more else 0


@cli.command()
@click.argument("key")
@click.option("--results", type=FOLDER, help="Default: all folders below results/.")
def explain(key: str, results: Path | None) -> None:
    """Show everything behind one cell. KEY is the name of a record or its first digits."""
    from bdbench.cli.describe import explanation

    click.echo(explanation(key, results))


@cli.command(name="check")
@click.argument("what", metavar="FILE_OR_NAME")
@click.option("--plugin", type=FILE, multiple=True, help="A file that registers a plugin.")
def check_plugin(what: str, plugin: tuple[Path, ...]) -> int:
    """Test a plugin against the contract: a file that registers some, or a name.

    Exit codes: 0 every promise is kept, 1 one is broken, 2 there is no such plugin.
    """
    from bdbench.contract.promises import broken, found

    _load(plugin)
    failures = 0
    for kind, name in found(what):
        click.echo(f"{kind} {name}")
        for each, how in broken(kind, name):
            click.echo(f"  {'ok     ' if how is None else 'BROKEN '}{each.sentence}")
            if how is not None:
                failures += 1
                click.echo(f"         {how}")
    return 1 if failures else 0


@cli.group(cls=Commands)
def data() -> None:
    """Find, prepare and poison data sets."""


@data.command(name="ls")
@click.option("--data", "folder", type=FOLDER, help="Where data sets lie. [default: $BDBENCH_DATA]")
def data_ls(folder: Path | None) -> None:
    """Show which data sets were found, and where."""
    from bdbench.datasets.registry import datasets
    from bdbench.storage.folders import roots

    for name in datasets.names():
        found = datasets.build(name).locate(roots(folder))
        click.echo(f"{name:<16} {found or 'not found'}")
    click.echo(f"searched: {', '.join(str(root) for root in roots(folder))}")


@data.command()
@click.argument("name")
@click.option("--data", "folder", type=FOLDER, help="Where data sets lie. [default: $BDBENCH_DATA]")
def prepare(name: str, folder: Path | None) -> None:
    """Decode a data set into the cache and show what is in it."""
    from bdbench.datasets.registry import datasets
    from bdbench.storage.cache import Cache
    from bdbench.storage.folders import cache_root, roots

    loaded = datasets.build(name).load(roots(folder), Cache(cache_root()))
    height, width = loaded.train.size
    click.echo(f"data set        {datasets.canonical(name)}")
    click.echo(f"training images {len(loaded.train):,} of {height} x {width} pixels")
    click.echo(f"test images     {len(loaded.test):,}")
    click.echo(f"classes         {loaded.train.num_classes}: {', '.join(loaded.class_names)}")
    click.echo(f"sha256          {loaded.sha256}")
    for note in loaded.notes:
        click.echo(f"note            {note}")


@data.command()
@click.argument("attack")
@click.option("--dataset", default="toy", show_default=True, metavar="SPEC")
@click.option("--count", default=8, show_default=True, metavar="N", help="Test images to show.")
@click.option("--seed", default=0, show_default=True, metavar="N")
@click.option(
    "--out", type=FILE, help="Where to draw: .png, .pdf or .svg. [default: preview-ATTACK.png]"
)
@click.option("--data", type=FOLDER, help="Where data sets lie. [default: $BDBENCH_DATA]")
@click.option("--plugin", type=FILE, multiple=True, help="A file that registers a plugin.")
@click.option("--model", default="wrn16_1", show_default=True, metavar="SPEC", help=TRAINED)
@click.option("--epochs", default=10, show_default=True, metavar="N", help=TRAINED)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
def preview(attack: str, plugin: tuple[Path, ...], **options: Any) -> None:
    """Draw images before and after ATTACK, and measure what it changes.

    The data are poisoned as in a run with this seed. "Seen" and "energy left" are what the random
    crop, flip and cutout of the default recipe leave of the trigger.
    """
    from bdbench.figures import preview as previews

    _load(plugin)
    for line in previews.preview(attack, **options):
        click.echo(line)


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

    click.echo(listing(Cache(cache_root()), kind))


@cache.command(name="verify")
def cache_verify() -> int:
    """Compare everything with its hashes. Nothing is removed.

    Exit codes: 0 all is whole, 1 something is damaged; a run makes it anew.
    """
    from bdbench.storage.cache import Cache
    from bdbench.storage.folders import cache_root
    from bdbench.storage.maintenance import verify

    lines, whole = verify(Cache(cache_root()))
    click.echo("\n".join(lines))
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

    click.echo("\n".join(sweep(Cache(cache_root()), kinds, max_size, dry_run)))


@cli.command()
@click.option("--data", "folder", type=FOLDER, help="Where data sets lie. [default: $BDBENCH_DATA]")
def doctor(folder: Path | None) -> int:
    """Show versions, devices and folders, and what would stand in the way of a run."""
    from bdbench.cli.describe import diagnosis

    lines, fine = diagnosis(folder)
    click.echo("\n".join(lines))
    return 0 if fine else 1


def _records(results: Path) -> tuple[list[Record], bool]:
    """The records of a folder, and whether any was damaged, which is said."""
    from bdbench.records.files import read_all

    records, damaged = read_all(results)
    for line in damaged:
        click.echo(f"bdbench: {line}; it is left out", err=True)
    return records, bool(damaged)


def _load(plugins: Sequence[Path]) -> None:
    from bdbench.models.plugins.registry import load_file

    for path in plugins:
        load_file(path)

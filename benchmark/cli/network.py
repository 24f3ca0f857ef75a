"""Networks of one's own, and networks for others: `bdbench evaluate` and `bdbench export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bdbench.cli.group import FILE, FOLDER, UserPath, cli, load_plugins, records_in, say
from bdbench.cli.run import JOBS, named
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import require
from bdbench.running.engines.own_nursery import nursery

ANY_PATH = UserPath(path_type=Path)


@cli.command()
@click.argument("weights", type=ANY_PATH)
@click.option("--dataset", required=True, metavar="SPEC", help="What the network is tested on.")
@click.option(
    "--attack", multiple=True, required=True, metavar="SPEC", help="With which; repeatable."
)
@click.option("--defense", multiple=True, metavar="SPEC", help="To start from it; repeatable.")
@click.option("--model", metavar="SPEC", help="Its architecture, unless the file says it.")
@click.option("--seeds", type=int, metavar="N", help="Seeds 0 to N-1 of attack and defense.")
@click.option("--seed", type=int, multiple=True, metavar="N", help="Exactly this; repeatable.")
@click.option("--recipe", metavar="SPEC", help="How defenses train.")
@click.option("--epochs", type=int, metavar="N", help="Length of the recipe.")
@click.option("--train-images", type=int, metavar="N", help="Of the data set, for defenses.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
@click.option("--precision", metavar="NAME", help="auto, fp32 or bf16.  [default: fp32]")
@click.option("--results", type=FOLDER, help="Default: results/evaluate.")
@click.option("--data", type=FOLDER, help="Where data sets lie. [default: $BDBENCH_DATA]")
@click.option("--plugin", type=FILE, multiple=True, help="A file that registers a plugin.")
@click.option("--jobs", type=JOBS, metavar="N", help="Cells at once: N, or auto, the default.")
@click.option("--threads", type=int, metavar="N", help="Of each cell on a CPU. [default: 1]")
@click.option("--in-process", is_flag=True, help="Run cells in this process, for debugging.")
@click.option("--limit", type=float, metavar="SECONDS", help="Stop any cell that takes longer.")
@click.option("--dry-run", is_flag=True, help="List the cells and their cost, run none.")
@click.option("--stale", is_flag=True, help="Also run cells whose code has changed.")
@click.option("--save", is_flag=True, help="Keep the networks, in RESULTS/networks.")
def evaluate(weights: Path, model: str | None, dataset: str, **options: Any) -> int:
    """Evaluate a network of your own, and defenses that start from it.

    WEIGHTS is a safetensors file with the state dict of a network: one that `bdbench run --save` or
    `bdbench export` wrote, or your own of the same architecture. What stands before all names, such
    as `module.`, does not matter. A pickle (.pt, .pth) is not opened.

    CA, ASR, R-Acc and floor of the network as it is come first, then those of each defense. The
    records are named by the hash of the weights: another file with the same weights is not run
    again. Pixels are in [0, 1] and RGB; a network that expects them normalised says so in its
    model: --model "resnet18(mean=(0.49, 0.48, 0.45), deviation=(0.25, 0.24, 0.26))".

    Exit codes: 0 all fine, 1 a cell failed, 2 bad usage or configuration, 130 stopped.
    """
    if not options["in_process"]:
        nursery()
    from bdbench.cells.overrides import SuiteOverrides
    from bdbench.machine.terminal import Terminal
    from bdbench.running.engines.options import ExecutionOptions
    from bdbench.running.evaluation import evaluation
    from bdbench.running.run import RunOptions, execute

    execution = ExecutionOptions(**named(ExecutionOptions, options))
    overrides = SuiteOverrides(dataset=[dataset], **named(SuiteOverrides, options))
    load_plugins(options["plugin"])
    made = evaluation(
        weights, model, overrides, execution, RunOptions(**named(RunOptions, options))
    )
    console = Terminal()
    if options["dry_run"]:
        console.print("\n".join(made.lines()), markup=False, highlight=False, soft_wrap=True)
        return 0
    code = execute(made, console).code
    return max(code, _show(made.results, {cell.key for cell in made.cells}))


def _show(folder: Path, keys: set[str]) -> int:
    """Write the leaderboard of a folder and print that of some cells. Returns the exit code."""
    from bdbench.tables.write import leaderboard, write_leaderboard

    records, damaged = records_in(folder)
    chosen = [record for record in records if record.key in keys]
    if chosen:
        say(leaderboard(chosen, columns=["floor", "R-Acc"]).markdown())
        say(f"written: {', '.join(map(str, write_leaderboard(records, folder)))}")
    return 1 if damaged else 0


@cli.command()
@click.argument("key", required=False)
@click.option("--results", type=FOLDER, help="Default: all folders below results/; results/quick.")
@click.option("--out", type=ANY_PATH, help="A folder for a cell, a file for a table.")
@click.option("--force", is_flag=True, help="Replace an earlier export of a cell.")
@click.option("--no-network", is_flag=True, help="Leave the network of a cell out.")
@click.option("--device", default="auto", show_default=True, help="To make a network again.")
@click.option("--data", type=FOLDER, help="Where data sets lie. [default: $BDBENCH_DATA]")
@click.option("--plugin", type=FILE, multiple=True, help="A file that registers a plugin.")
@click.option("--format", "form", metavar="csv|parquet", help="Of a table.")
@click.option("--epochs", is_flag=True, help="A row for each epoch of a curve, in a table.")
def export(key: str | None, **options: Any) -> int:
    """Export a cell, or all records as a table, for other programs.

    KEY is the name of a record or its first digits. The folder --out then has the defended network
    (network.safetensors, and network.pt2, which PyTorch runs without bdbench), the training set
    after the attack (poisoned.parquet), the test set with the trigger (triggered.parquet), the
    record and a README. A network that no `bdbench run --save` kept is trained again.

    Without KEY, --format csv or parquet writes a row for each record of --results.
    """
    context = click.get_current_context()
    given = {
        name
        for name in options
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    of_table, of_cell = {"form", "epochs"}, {"force", "no_network", "device", "data", "plugin"}
    of_both = {"results", "out"}
    if key is None:
        _refuse(given & of_cell, "is for a single cell: name its KEY")
        return _export_table(**{name: options[name] for name in of_table | of_both})
    _refuse(given & of_table, "is for a table of all records, so leave out KEY")
    return _export_cell(key, **{name: options[name] for name in of_cell | of_both})


def _refuse(names: set[str], why: str) -> None:
    """Raises `InvalidInput` for options that are of the other use of a command."""
    for name in sorted(names):
        option = {"form": "format"}.get(name, name.replace("_", "-"))
        require(False, f"--{option} {why}")


def _export_table(form: str | None, epochs: bool, results: Path | None, out: Path | None) -> int:
    from bdbench.tables.export import FORMS, write

    known = f"--format is one of {', '.join(FORMS)}"
    require(form is not None, f"name the KEY of a cell, or a format for a table of all: {known}")
    assert form is not None
    require(form in FORMS, f"unknown format {form!r}{spec.did_you_mean(form, FORMS)}")
    folder = results or Path("results/quick")
    records, damaged = records_in(folder)
    require(bool(records), f"no records in {folder / 'records'}; `bdbench run` makes them")
    path = out or folder / "tables" / f"{'epochs' if epochs else 'cells'}.{form}"
    require(not path.is_dir(), f"{path} is a folder: name a file with --out")
    write(records, path, form, epochs)
    say(f"written: {path}")
    return 1 if damaged else 0


def _export_cell(
    key: str,
    results: Path | None,
    out: Path | None,
    force: bool,
    no_network: bool,
    device: str,
    data: Path | None,
    plugin: tuple[Path, ...],
) -> int:
    require(out is not None, "name a folder for the cell with --out")
    assert out is not None
    from bdbench.records.files import find

    path = find(key, results)
    from bdbench.machine.terminal import Terminal
    from bdbench.running.export import Export

    load_plugins(plugin)
    console = Terminal()
    for line in Export(path, out, force, not no_network, device, data).write(console):
        say(line)
    return 0

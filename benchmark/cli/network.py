"""`bdbench evaluate` and `bdbench export`: networks from files, and networks for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bdbench.cli import options as shared
from bdbench.cli.group import cli, load_plugins, records_in, say
from bdbench.cli.options import ANY_PATH, FOLDER, pop_fields
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.running.engines.own_nursery import nursery


@cli.command()
@click.argument("weights", type=ANY_PATH)
@click.option("--dataset", required=True, metavar="SPEC", help="Test on this data set.")
@click.option(
    "--attack",
    multiple=True,
    required=True,
    metavar="SPEC",
    help="Test with the trigger of this attack; repeatable.",
)
@click.option(
    "--defense",
    multiple=True,
    metavar="SPEC",
    help="Also run this defense, starting from the network; repeatable.",
)
@click.option(
    "--model", metavar="SPEC", show_default="that in the file", help="Set the architecture."
)
@shared.SEEDS
@shared.SEED
@click.option("--recipe", metavar="SPEC", help="Set the recipe that defenses train with.")
@shared.EPOCHS
@click.option(
    "--train-images",
    type=int,
    metavar="N",
    help="Give defenses a fixed subset of N training images.",
)
@shared.DEVICE
@click.option(
    "--precision",
    metavar="NAME",
    show_default="fp32",
    help="Compute in this precision: auto, fp32 or bf16.",
)
@click.option(
    "--results",
    type=FOLDER,
    metavar="DIR",
    show_default="results/evaluate",
    help="Write records and tables to DIR.",
)
@shared.DATA
@shared.PLUGIN
@shared.JOBS
@shared.THREADS
@shared.IN_PROCESS
@shared.LIMIT
@shared.DRY_RUN
@shared.STALE
@shared.SAVE
@shared.REACTIVATE
def evaluate(weights: Path, model: str | None, dataset: str, **options: Any) -> int:
    """Evaluate a network from a file.

    With --defense, also evaluate defenses that start from it.

    WEIGHTS is a safetensors file with the state dict of a network: one that `bdbench run --save` or
    `bdbench export` wrote, or your own of the same architecture. A prefix that all names share,
    such as `module.`, is ignored. Pickles (.pt, .pth) are never opened.

    The table shows CA, ASR, R-Acc and floor of the network itself, then those of each
    defense. Defenses train with the default recipe and seed 0 unless options say otherwise.
    Records are keyed by the hash of the weights, so another file with the same weights is not run
    again. The network gets RGB pixels in [0, 1]; if it expects normalised ones, say so in its
    model: --model "resnet18(mean=(0.49, 0.48, 0.45), deviation=(0.25, 0.24, 0.26))".

    Exit codes: 0 success, 1 a cell failed, 2 bad usage, configuration or input, also if a cell
    failed on it while the others ran, 130 interrupted.
    """
    if not options["in_process"]:
        nursery()
    from bdbench.cells.overrides import SuiteOverrides
    from bdbench.cli.ending import carry_out
    from bdbench.running.engines.options import ExecutionOptions
    from bdbench.running.evaluation import evaluation
    from bdbench.running.plan import RunOptions

    execution = ExecutionOptions(**pop_fields(ExecutionOptions, options))
    overrides = SuiteOverrides(dataset=[dataset], **pop_fields(SuiteOverrides, options))
    load_plugins(options["plugin"])
    how = RunOptions(**pop_fields(RunOptions, options))
    made = evaluation(weights, model, overrides, execution, how)
    return carry_out(made, options["dry_run"], columns=["floor", "R-Acc"])


@cli.command()
@click.argument("key", required=False)
@click.option(
    "--results",
    type=FOLDER,
    metavar="DIR",
    help="Read the records in DIR.  [default: for a cell, all folders in results/; for a table, "
    "results/quick]",
)
@click.option(
    "--out", type=ANY_PATH, help="Write to PATH: a new folder for a cell, a file for a table."
)
@click.option("--force", is_flag=True, help="Replace an earlier export of a cell.")
@click.option("--no-network", is_flag=True, help="Export a cell without its network.")
@shared.DEVICE
@shared.DATA
@shared.PLUGIN
@click.option("--format", "form", metavar="csv|parquet", help="Set the format of a table.")
@click.option("--epochs", is_flag=True, help="Write a row of the table for each epoch of a curve.")
def export(key: str | None, **options: Any) -> int:
    """Export a cell, or all records as a table.

    KEY is the key of a cell or its first digits. The folder --out then holds the defended network
    (network.safetensors, and network.pt2, which PyTorch runs without bdbench), the training set
    after the attack (poisoned.parquet), the test set with the trigger (triggered.parquet), the
    record and a README. A network that `bdbench run --save` did not save is trained again, on
    --device.

    Without KEY, --format writes a table with a row for each record of --results.
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
        _refuse(given & of_cell, "is for the export of a single cell: name its KEY")
        return _export_table(**{name: options[name] for name in of_table | of_both})
    _refuse(given & of_table, "is for a table of all records: leave out KEY")
    return _export_cell(key, **{name: options[name] for name in of_cell | of_both})


def _refuse(names: set[str], why: str) -> None:
    """Raises `InvalidInput` for options of the other form of a command."""
    for name in sorted(names):
        option = {"form": "format"}.get(name, name.replace("_", "-"))
        raise InvalidInput(f"--{option} {why}")


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

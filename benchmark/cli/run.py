"""`bdbench run`."""

from __future__ import annotations

from typing import Any

import click

from bdbench.cells.suite_file import find
from bdbench.cli import options as shared
from bdbench.cli.group import cli, load_plugins
from bdbench.cli.options import FOLDER, pop_fields
from bdbench.running.engines.own_nursery import nursery


@cli.command()
@click.argument("name", metavar="[SUITE|FILE.toml]", default="quick")
@click.option("--dataset", multiple=True, metavar="SPEC", help="Replace the data sets; repeatable.")
@click.option("--model", multiple=True, metavar="SPEC", help="Replace the models; repeatable.")
@click.option("--attack", multiple=True, metavar="SPEC", help="Replace the attacks; repeatable.")
@click.option("--defense", multiple=True, metavar="SPEC", help="Replace the defenses; repeatable.")
@shared.SEEDS
@shared.SEED
@click.option(
    "--recipe", metavar="SPEC", help='Replace the recipe, for example by "recipe(epochs=20)".'
)
@shared.EPOCHS
@click.option("--train-images", type=int, metavar="N", help="Train on a fixed subset of N images.")
@click.option(
    "--loader",
    metavar="NAME",
    help="Load batches on the device (resident) or as public code does (reference).",
)
@shared.DEVICE
@click.option(
    "--precision",
    metavar="NAME",
    show_default="that of the suite",
    help="Train in this precision: auto, fp32 or bf16.",
)
@click.option(
    "--results",
    type=FOLDER,
    metavar="DIR",
    show_default="results/SUITE",
    help="Write records and tables to DIR.",
)
@click.option(
    "--against",
    type=FOLDER,
    multiple=True,
    metavar="DIR",
    help="Compare with the records in DIR and do not repeat their cells; repeatable.",
)
@shared.DATA
@shared.PLUGIN
@shared.JOBS
@shared.THREADS
@shared.IN_PROCESS
@click.option(
    "--engine",
    default="local",
    show_default=True,
    metavar="NAME",
    help="Run the cells here (local) or on a cluster (ray, slurm).",
)
@click.option("--cores", type=int, metavar="N", help="Give each cell N cores of the cluster.")
@click.option(
    "--gpus", type=float, metavar="N", help="Give each cell N GPUs of the cluster; may be 0.25."
)
@click.option(
    "--option",
    multiple=True,
    metavar="KEY=VALUE",
    help="Pass an option to the cluster's library; repeatable.",
)
@click.option(
    "--budget", type=float, metavar="SECONDS", help="Start no cell that would end after SECONDS."
)
@shared.LIMIT
@shared.DRY_RUN
@shared.STALE
@click.option("--graphs", is_flag=True, help="Record training steps on a GPU as CUDA graphs.")
@click.option("--curves", is_flag=True, help="Evaluate each training at up to 20 epochs.")
@shared.SAVE
@shared.REACTIVATE
def run(name: str, **options: Any) -> int:
    """Run the cells of SUITE that have no record yet.

    Then write the leaderboard of all records in --results and print it.

    SUITE is `quick` by default. `bdbench list suites` shows the others, and `bdbench describe quick
    --toml` prints a file to start your own from. The options --dataset, --model, --attack and
    --defense replace that axis of the suite. Without an option, the suite decides. A SPEC is a name
    with or without fields, such as blend or "blend(alpha=0.1)". A list in place of a value is a
    sweep: "cbd(t1=[3, 5, 8])" is three defenses.

    With --against DIR, a cell that has a record in DIR is not run, and the leaderboard shows the
    records of both folders. New records go to --results; if results/SUITE is DIR itself, or holds a
    file PUBLISHED, the default is results/SUITE-own.

    Exit codes: 0 success, 1 a cell failed, 2 bad usage, configuration or input, also if a cell
    failed on it while the others ran, 130 interrupted.
    """
    chosen = find(name)
    if options["engine"] == "local" and not options["in_process"]:
        nursery()
    from bdbench.cells.overrides import SuiteOverrides
    from bdbench.cli.ending import carry_out
    from bdbench.running.engines.options import ExecutionOptions, options_of
    from bdbench.running.plan import RunOptions, plan

    execution = ExecutionOptions(
        **pop_fields(ExecutionOptions, options), options=options_of(options.pop("option"))
    )
    load_plugins(options["plugin"])
    chosen.prepare()
    options["plugin"] += chosen.plugins
    overrides = SuiteOverrides(**pop_fields(SuiteOverrides, options))
    suite = overrides.applied_to(chosen.suite)
    how = RunOptions(**pop_fields(RunOptions, options))
    note = overrides.note(chosen.name, chosen.suite)
    made = plan(chosen.name, suite, execution, how, note)
    if execution.is_here and not options["dry_run"]:
        from bdbench.cli.transfer import offer

        offer((cell.dataset for cell in made.missing), how.data)
    return carry_out(made, options["dry_run"])

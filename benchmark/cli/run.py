"""`bdbench run`."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from bdbench.cells.suite_file import find
from bdbench.cli.group import FILE, FOLDER, cli, load_plugins
from bdbench.running.engines.own_nursery import nursery


class Jobs(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number, or None for `auto`."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in (None, "auto"):
            return None
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor auto", param, ctx)


JOBS = Jobs()

if TYPE_CHECKING:
    from rich.console import Console

    from bdbench.running.run import Plan


@cli.command()
@click.argument("name", metavar="[SUITE|FILE.toml]", default="quick")
@click.option("--dataset", multiple=True, metavar="SPEC", help="Replace the data sets.")
@click.option("--model", multiple=True, metavar="SPEC", help="Replace the models.")
@click.option("--attack", multiple=True, metavar="SPEC", help="Replace the attacks.")
@click.option("--defense", multiple=True, metavar="SPEC", help="Replace the defenses.")
@click.option("--seeds", type=int, metavar="N", help="Run seeds 0 to N-1.")
@click.option("--seed", type=int, multiple=True, metavar="N", help="Exactly this; repeatable.")
@click.option("--recipe", metavar="SPEC", help='Replace the recipe, "recipe(epochs=20, ...)".')
@click.option("--epochs", type=int, metavar="N", help="Length of the recipe.")
@click.option("--train-images", type=int, metavar="N", help="Train on a fixed subset.")
@click.option(
    "--loader", metavar="NAME", help="resident or reference: how public code makes batches."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
@click.option("--precision", metavar="NAME", help="auto, fp32 or bf16; the suite's by default.")
@click.option("--results", type=FOLDER, help="Default: results/SUITE.")
@click.option(
    "--against", type=FOLDER, multiple=True, help="Records to stand beside; not run again."
)
@click.option("--data", type=FOLDER, help="Where data sets lie. [default: $BDBENCH_DATA]")
@click.option("--plugin", type=FILE, multiple=True, help="A file that registers a plugin.")
@click.option("--jobs", type=JOBS, metavar="N", help="Cells at once: N, or auto, the default.")
@click.option("--threads", type=int, metavar="N", help="Of each cell on a CPU. [default: 1]")
@click.option("--in-process", is_flag=True, help="Run cells in this process, for debugging.")
@click.option("--engine", default="local", show_default=True, help="local, ray or slurm.")
@click.option("--cores", type=int, metavar="N", help="Cores for each cell on a cluster.")
@click.option("--gpus", type=float, metavar="N", help="GPUs for each cell on a cluster: 1 or 0.25.")
@click.option("--option", multiple=True, metavar="KEY=VALUE", help="For the cluster's library.")
@click.option("--budget", type=float, metavar="SECONDS", help="Start no cell that would not fit.")
@click.option("--limit", type=float, metavar="SECONDS", help="Stop any cell that takes longer.")
@click.option("--dry-run", is_flag=True, help="List the cells and their cost, run none.")
@click.option("--stale", is_flag=True, help="Also run cells whose code has changed.")
@click.option("--graphs", is_flag=True, help="Record training steps on a GPU as CUDA graphs.")
@click.option("--curves", is_flag=True, help="Evaluate at up to 20 epochs.")
@click.option("--save", is_flag=True, help="Keep every defended network, in RESULTS/networks.")
def run(name: str, **options: Any) -> int:
    """Run the cells of SUITE that have no record yet, then print the leaderboard.

    SUITE is `quick` unless given; `bdbench list suites` shows the others, and `bdbench describe
    quick --toml` prints a file to start one's own from. The options --dataset, --model, --attack
    and --defense replace that axis of the suite and may be repeated. A SPEC is a name with or
    without fields, such as blend or "blend(alpha=0.1)"; a list in place of a value is a sweep, so
    "cbd(t1=[3, 5, 8])" is three defenses.

    With --against DIR, repeatable, a cell that has its record in DIR is not run, and the
    leaderboard shows the records of both folders. New records go to --results, by default
    results/SUITE, or results/SUITE-own where that is DIR.

    Exit codes: 0 all fine, 1 a cell failed, 2 bad usage or configuration, 130 stopped.
    """
    chosen = find(name)
    if options["engine"] == "local" and not options["in_process"]:
        nursery()
    from bdbench.cells.overrides import SuiteOverrides
    from bdbench.machine.terminal import Terminal
    from bdbench.running.engines.options import ExecutionOptions, options_of
    from bdbench.running.run import RunOptions, execute, plan

    execution = ExecutionOptions(
        **named(ExecutionOptions, options), options=options_of(options.pop("option"))
    )
    load_plugins(options["plugin"])
    chosen.prepare()
    options["plugin"] += chosen.plugins
    changed = SuiteOverrides(**named(SuiteOverrides, options)).applied_to(chosen.suite)
    how = RunOptions(**named(RunOptions, options))
    made = plan(chosen.name, changed, execution, how)
    console = Terminal()
    if options["dry_run"]:
        console.print("\n".join(made.lines()), markup=False, highlight=False, soft_wrap=True)
        return 0
    if execution.is_here:
        from bdbench.cli.transfer import offer

        offer((cell.dataset for cell in made.missing), how.data)
    return max(execute(made, console).code, _show(made, console))


def _show(plan: Plan, console: Console) -> int:
    """Write and print the leaderboard of all records in the folder, and of those beside them.
    Returns the exit code."""
    from bdbench.records.beside import join
    from bdbench.records.files import read_all
    from bdbench.tables.write import write_leaderboard

    folder = plan.results
    own, damaged = read_all(folder)
    records, origins = join(own, plan.beside, folder, plan.asked)
    for line in [*damaged, *(line for other in plan.beside for line in other.damaged)]:
        console.print(f"warning: {line}; it is left out", markup=False, highlight=False)
    if records:
        paths = write_leaderboard(records, folder, origins)
        for path in paths:
            if path.suffix == ".md":
                console.print(
                    path.read_text("utf-8"), markup=False, highlight=False, soft_wrap=True
                )
        console.print(f"tables in {folder / 'tables'}", markup=False, highlight=False)
    return 1 if damaged or any(other.damaged for other in plan.beside) else 0


def named(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """The options that have the names of fields of `kind`, taken out of `options`."""
    names = options.keys() & {field.name for field in fields(kind)}
    return {name: options.pop(name) for name in names}

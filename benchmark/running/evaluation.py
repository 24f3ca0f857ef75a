"""`bdbench evaluate`: a user's network as cells, without and with defenses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bdbench.cells.overrides import SuiteOverrides
from bdbench.cells.suites import Suite
from bdbench.datasets.registry import datasets
from bdbench.models.plugins.notices import notify
from bdbench.models.registry import Model
from bdbench.running.engines.options import ExecutionOptions
from bdbench.running.plan import Plan, RunOptions, plan
from bdbench.storage import networks
from bdbench.trial.networks import converted, given_model

NAME = "evaluate"


def suite_of(overrides: SuiteOverrides) -> Suite:
    """The suite of an evaluation, without its model; the network as it is comes first. Raises
    `InvalidInput`."""
    empty = Suite("a user's network", datasets=(), defenses=())
    suite = overrides.applied_to(empty)
    return replace(suite, defenses=tuple(dict.fromkeys(("none", *suite.defenses))))


def evaluation(
    file: Path,
    model: str | Model | None,
    overrides: SuiteOverrides,
    execution: ExecutionOptions,
    options: RunOptions,
) -> Plan:
    """The plan for the network in a file; nothing runs yet.

    model: the architecture; None to take it from the file
    overrides: must name the data set

    Raises `InvalidInput` for a file without a network of this model and data set, for a defense
    that does not start from a network, and as `plan` does.
    """
    suite, stored = suite_of(overrides), networks.read(file)
    chosen = given_model(stored, model, datasets.built(suite.datasets[0]))
    if warning := converted(stored):
        notify(warning, stacklevel=2)
    return plan(NAME, replace(suite, models=(chosen,)), execution, replace(options, network=file))

"""`bdbench evaluate`: a network of one's own as cells, without and with defenses."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from bdbench.cells.overrides import SuiteOverrides
from bdbench.cells.suites import Suite
from bdbench.datasets.registry import datasets
from bdbench.models.registry import Model
from bdbench.running.engines.options import ExecutionOptions
from bdbench.running.run import Plan, RunOptions, plan
from bdbench.storage import networks
from bdbench.trial.networks import brought, converted

NAME = "evaluate"


def suite_of(overrides: SuiteOverrides) -> Suite:
    """Of an evaluation, but for its model: the network as it is comes first. Raises
    `InvalidInput`."""
    own = Suite("a network of one's own", datasets=(), defenses=(), precision="fp32")
    made = overrides.applied_to(own)
    return replace(made, defenses=tuple(dict.fromkeys(("none", *made.defenses))))


def evaluation(
    file: Path,
    model: str | Model | None,
    overrides: SuiteOverrides,
    execution: ExecutionOptions,
    options: RunOptions,
) -> Plan:
    """What there is to run for the network in a file; nothing is run yet.

    model: what the weights are of; None for what the file says
    overrides: of which the data set is one

    Raises `InvalidInput` for a file that holds no network of this model and data set, for a defense
    that does not start from a network, and as `plan` does.
    """
    suite, stored = suite_of(overrides), networks.read(file)
    chosen = brought(stored, model, datasets.built(suite.datasets[0]))
    if told := converted(stored):
        warnings.warn(told, stacklevel=2)
    return plan(NAME, replace(suite, models=(chosen,)), execution, replace(options, network=file))

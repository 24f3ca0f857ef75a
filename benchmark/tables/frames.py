"""What CSV files hold, as data frames: cells over their seeds, the long form of the paper's tables,
and differences between defenses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations, groupby
from typing import Any

import pandas as pd

from bdbench.records.beside import Origins
from bdbench.records.consistency import AXES
from bdbench.records.record import CONTROL, REACTIVATED, REACTIVATED_CA, SPECS, STAGES, Record
from bdbench.tables.groups import (
    Group,
    collect,
    filtered,
    is_none,
    seconds_own,
    seconds_total,
    trainings,
)
from bdbench.tables.paper import overhead, passes_ratios, spread, stage_seconds
from bdbench.tables.published import reference
from bdbench.tables.statistics import difference, tied

INTERVALS = ("clean_accuracy", "attack_success_rate", "robust_accuracy")
COLUMNS = (
    *(*SPECS, "seeds"),
    *(f"{metric}{part}" for metric in INTERVALS for part in ("", "_low", "_high")),
    *("asr_floor", "at_floor", "der", "tpr", "fpr", "auroc", "clean_fraction", "trainings"),
    *("seconds_own", "seconds_total", "passes_forward", "passes_backward"),
    *("flags", "excluded"),
)
REACTIVATION = (
    *(f"{REACTIVATED}{part}" for part in ("", "_low", "_high", "_seeds")),
    *(REACTIVATED_CA, CONTROL),
)
"""Columns of P-ASR, where any cell has one; `_seeds`: how many its mean is over."""

DIFFERENCES = (
    *("dataset", "model", "recipe", "attack", "metric", "defense", "other"),
    *("seeds", "difference", "low", "high", "separable"),
)


def summarise(records: Iterable[Record]) -> pd.DataFrame:
    """One row per cell, over its seeds, with the columns `COLUMNS`, and those of `REACTIVATION`
    where one is measured.

    metrics: shares in [0, 1] with their interval, see `statistics.estimate`
    at_floor: whether the ASR does not exceed the floor
    der, clean_fraction: shares in [0, 1], see `Group.der`, `clean_fraction`
    tpr, fpr, auroc: shares in [0, 1], see `filtered`
    trainings: see `groups.trainings`
    seeds, excluded: records that enter the means, and records that failed or are not finite
    flags: with their number of seeds, such as `not_finite:2`

    Raises `InvalidInput` for records that do not belong in one table, see `collect`.
    """
    return summary(collect(records))


def summary(groups: Sequence[Group]) -> pd.DataFrame:
    """See `summarise`."""
    undefended = _undefended(groups)
    rows = [_row(group, undefended.get(_data_of(group))) for group in groups]
    if not any(group.counts(REACTIVATED) for group in groups):
        return pd.DataFrame(rows, columns=list(COLUMNS))
    for row, group in zip(rows, groups, strict=True):
        others = [group.estimate(metric)[0] for metric in (REACTIVATED_CA, CONTROL)]
        own = (*group.estimate(REACTIVATED), len(group.counts(REACTIVATED)))
        row |= zip(REACTIVATION, (*own, *others), strict=True)
    return pd.DataFrame(rows, columns=[*COLUMNS, *REACTIVATION])


def _undefended(groups: Iterable[Group]) -> dict[tuple[str, ...], Group]:
    """The groups with no defense by all other names; the first one if there are several."""
    found: dict[tuple[str, ...], Group] = {}
    for group in groups:
        if is_none(group.names["defense"]):
            found.setdefault(_data_of(group), group)
    return found


def _row(group: Group, undefended: Group | None) -> dict[str, Any]:
    row: dict[str, Any] = {**group.names, "seeds": len(group.used)}
    for metric in INTERVALS:
        share = group.estimate(metric)
        row |= zip((metric, f"{metric}_low", f"{metric}_high"), share, strict=True)
    return row | {
        "asr_floor": group.estimate("asr_floor")[0],
        "at_floor": group.at_floor if group.counts("attack_success_rate") else None,
        "der": group.der(undefended),
        "tpr": group.mean(lambda record: filtered(record).tpr),
        "fpr": group.mean(lambda record: filtered(record).fpr),
        "auroc": group.mean(lambda record: filtered(record).auroc),
        "clean_fraction": group.clean_fraction,
        "trainings": group.mean(trainings),
        "seconds_own": group.mean(seconds_own),
        "seconds_total": group.mean(seconds_total),
        "passes_forward": group.mean(lambda record: record.passes.forward),
        "passes_backward": group.mean(lambda record: record.passes.backward),
        "flags": " ".join(f"{flag}:{len(own)}" for flag, own in group.flagged.items()),
        "excluded": len(group.records) - len(group.used),
    }


def long_form(groups: Sequence[Group], table: int) -> pd.DataFrame:
    """One row per group, with the printed shares in [0, 1] and the differences from them."""
    undefended = _undefended(groups)
    rows = []
    for group in groups:
        found = reference(group.records[0].cell, table)
        row = _row(group, undefended.get(_data_of(group)))
        if table == 3:
            row |= _timing(group, undefended[_data_of(group)])
            row["paper_seconds"] = found.published.seconds if found else None
        else:
            for metric in INTERVALS[:2]:
                printed = found.printed(metric) if found else None
                row[f"paper_{metric}"] = math.nan if printed is None else printed / 100
                row[f"{metric}_difference"] = row[metric] - row[f"paper_{metric}"]
        rows.append(row | {"departures": "; ".join(found.departures) if found else ""})
    return pd.DataFrame(rows)


def _timing(group: Group, undefended: Group) -> dict[str, float]:
    """The columns of Table 3: medians over the seeds, `_low` and `_high` their range.

    seconds_total, seconds_<stage>: time in all and by stage
    seconds_increase: increase of seconds_total over no defense, as a share
    passes_ratio: passes relative to no defense
    others: the largest load that other processes put on the device
    """
    total = spread(list(group.seconds.values()))
    increase = spread([percent / 100 for percent in overhead(group, undefended)])
    parts = ("", "_low", "_high")
    others: list[Any] = [record.measured.others for record in group.used]
    return {
        "seconds_own": spread(stage_seconds(group, "fit"))[0],
        **dict(zip((f"seconds_total{part}" for part in parts), total, strict=True)),
        **{f"seconds_{stage}": spread(stage_seconds(group, stage))[0] for stage in STAGES},
        **dict(zip((f"seconds_increase{part}" for part in parts), increase, strict=True)),
        "passes_ratio": spread(passes_ratios(group, undefended))[0],
        "others": math.nan if None in others else max(others),
    }


def folders(group: Group, origins: Origins) -> str:
    """The folders that the records of a row come from."""
    return "; ".join(dict.fromkeys(str(origins.of(record)) for record in group.records))


def _data_of(group: Group) -> tuple[str, ...]:
    return tuple(group.names[axis] for axis in AXES if axis != "defense")


def differences(groups: Sequence[Group]) -> pd.DataFrame:
    """For each attack and pair of defenses, `other` minus `defense`.

    It is the mean over the seeds that both have, with its 95 % interval, see
    `statistics.difference`. The two are separable if they are not `tied`.
    """
    rows = []
    for _, members in groupby(groups, key=_data_of):
        for one, two in combinations(members, 2):
            for metric in INTERVALS[:2]:
                a, b = one.counts(metric), two.counts(metric)
                common = sorted(a.keys() & b.keys())
                if not common:
                    continue
                sides = ([side[seed] for seed in common] for side in (b, a))
                interval = zip(("difference", "low", "high"), difference(*sides), strict=True)
                rows.append(
                    {
                        **{axis: one.names[axis] for axis in AXES if axis != "defense"},
                        "metric": metric,
                        "defense": one.names["defense"],
                        "other": two.names["defense"],
                        "seeds": len(common),
                        **dict(interval),
                        "separable": not tied(a, b),
                    }
                )
    return pd.DataFrame(rows, columns=list(DIFFERENCES))

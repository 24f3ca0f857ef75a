"""Tables are pure functions of records: a tidy CSV and a leaderboard in Markdown.

The same records give the same bytes, in whatever order they come.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark.blocks import LEGEND, Block
from benchmark.files import write_atomically
from benchmark.groups import AXES, Group, collect, seconds_own, seconds_total
from benchmark.records import Record
from models.errors import InvalidInput

INTERVALS = ("clean_accuracy", "attack_success_rate", "robust_accuracy")
COLUMNS = (
    *("dataset", "model", "attack", "defense", "recipe", "seeds"),
    *(f"{metric}{part}" for metric in INTERVALS for part in ("", "_low", "_high")),
    *("asr_floor", "seconds_own", "seconds_total", "passes_forward", "passes_backward"),
    *("flags", "excluded"),
)


@dataclass(frozen=True, eq=False)
class Leaderboard:
    """blocks: Markdown, one per data set, model and recipe. summary: what `summarise` returns."""

    blocks: tuple[str, ...]
    summary: pd.DataFrame

    def markdown(self) -> str:
        """The blocks and a legend."""
        return "\n\n".join([*self.blocks, LEGEND]) + "\n"

    def csv(self) -> str:
        """The summary with shares in [0, 1], six significant digits, and nothing for nan."""
        return self.summary.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def summarise(records: Iterable[Record]) -> pd.DataFrame:
    """One row per cell, over its seeds, with the columns `COLUMNS`.

    Metrics are shares in [0, 1] with the Wilson interval of one seed or the t interval of several.
    Failed and diverged records enter no mean: they are counted in `excluded`, and `seeds` are the
    others. Flags read `diverged:2` for two seeds. Raises `InvalidInput` for records that do not
    belong into one table, see `collect`.
    """
    return _summary(collect(records))


def leaderboard(records: Iterable[Record]) -> Leaderboard:
    """Defenses by attacks, for each data set, model and recipe. Raises as `summarise` does."""
    groups = collect(records)
    blocks = groupby(groups, key=lambda group: [group.names[axis] for axis in AXES[:3]])
    return Leaderboard(
        tuple(Block(tuple(members)).markdown() for _, members in blocks), _summary(groups)
    )


def write_leaderboard(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write `leaderboard.csv` and `.md` to `<folder>/tables` and return their paths.

    Raises `InvalidInput` for no records, an unwritable folder, or as `summarise` does.
    """
    if not records:
        raise InvalidInput(f"no records in {folder / 'records'}; `bdbench run` makes them")
    board = leaderboard(records)
    texts = {"leaderboard.csv": board.csv(), "leaderboard.md": board.markdown()}
    for name, text in texts.items():
        write_atomically(folder / "tables" / name, text.encode())
    return [folder / "tables" / name for name in texts]


def _summary(groups: Iterable[Group]) -> pd.DataFrame:
    return pd.DataFrame([_row(group) for group in groups], columns=list(COLUMNS))


def _row(group: Group) -> dict[str, Any]:
    row: dict[str, Any] = {**group.names, "seeds": len(group.used)}
    for metric in INTERVALS:
        share = group.estimate(metric)
        row |= zip((metric, f"{metric}_low", f"{metric}_high"), share, strict=True)
    return row | {
        "asr_floor": group.estimate("asr_floor")[0],
        "seconds_own": group.mean(seconds_own),
        "seconds_total": group.mean(seconds_total),
        "passes_forward": group.mean(lambda record: record.passes["forward"]),
        "passes_backward": group.mean(lambda record: record.passes["backward"]),
        "flags": " ".join(f"{flag}:{len(those)}" for flag, those in group.flagged.items()),
        "excluded": len(group.records) - len(group.used),
    }

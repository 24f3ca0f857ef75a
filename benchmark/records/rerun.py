"""How to get a record again."""

from __future__ import annotations

import shlex

from bdbench.records.record import Record


def command(record: Record) -> str:
    """The command that runs this cell, and the seeds before it."""
    axes = ("dataset", "model", "attack", "defense", "recipe")
    chosen = " ".join(f"--{axis} {quoted(record.cell[axis])}" for axis in axes)
    return f"bdbench run {chosen} --seeds {record.cell['seed'] + 1}"


def quoted(word: str) -> str:
    """For a shell, as a person would where a spec has quotes of its own."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)

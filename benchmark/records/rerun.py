"""How to get a record again."""

from __future__ import annotations

import shlex

from bdbench.records.record import Record


def command(record: Record) -> str:
    """The command that runs this cell, and the seeds before it, with as many threads, on which the
    last bits of numbers hang."""
    axes = ("dataset", "model", "attack", "defense", "recipe")
    named, start, origin = dict(record.cell), "run", record.provenance
    if record.given is not None:
        given = origin.get("given")
        file = str(given.get("file", "")) if isinstance(given, dict) else ""
        named["model"], start = record.given, f"evaluate {quoted(file or 'FILE')}"
    chosen = " ".join(f"--{axis} {quoted(named[axis])}" for axis in axes)
    beside = str(origin.get("device", "")).startswith("cpu") and origin.get("threads", 1) != 1
    threads = f" --threads {origin['threads']}" if beside else ""
    return f"bdbench {start} {chosen} --seeds {record.cell['seed'] + 1}{threads}"


def quoted(word: str) -> str:
    """For a shell, as a person would where a spec has quotes of its own."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)

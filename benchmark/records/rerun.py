"""How to get a record again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from bdbench.records.record import Record

AXES = ("dataset", "model", "attack", "defense", "recipe")


def again(record: Record, results: Path) -> str:
    """What runs the cell of a record again: a line for a shell, or one of Python where a plugin is
    of a notebook or a script, and no command finds it.

    results: the folder of the record. The new one comes into a folder inside of it, as a cell that
        has its record is not run.
    """
    return call(record) if local(record) else command(record, results / "again")


def command(record: Record, results: Path) -> str:
    """The command that runs this cell alone into a folder, with as many threads, on which the last
    bits of numbers hang."""
    named, start, origin = dict(record.cell), ["run"], record.provenance
    if record.given is not None:
        named["model"], start = record.given, ["evaluate", given_file(record)]
    words = [word for axis in AXES for word in (f"--{axis}", named[axis])]
    words += ["--seed", str(record.cell["seed"])]
    if str(origin.get("device", "")).startswith("cpu") and origin.get("threads", 1) != 1:
        words += ["--threads", str(origin["threads"])]
    words += ["--curves"] * bool(record.curves)
    return line("bdbench", *start, *words, *with_plugins([record]), "--results", str(results))


def call(record: Record) -> str:
    """The same in Python, where nothing is written."""
    known, named = local(record), dict(record.cell)
    if record.given is not None:
        named["model"] = record.given
    words = [f"{axis}={n if axis in known else repr(n)}" for axis, n in named.items()]
    begun = "bd.run_cell("
    if record.given is not None:
        begun = f"bd.evaluate({given_file(record)!r}, "
    loaded = [f"bd.load_file({file!r})" for file in plugins(record)]
    return "; ".join([*loaded, f"{begun}{', '.join(words)})"])


def given_file(record: Record) -> str:
    """The file of a network that was brought, as it was named then; FILE where it had none."""
    given = record.provenance.get("given")
    return str((isinstance(given, dict) and given.get("file")) or "FILE")


def local(record: Record) -> set[str]:
    """The axes whose plugins are of a notebook or a script; the record has their code."""
    found = record.provenance.get("code")
    return set(found) if isinstance(found, dict) else set()


def plugins(record: Record) -> list[str]:
    """The plugin files of a cell, relative to the folder of the run if they were below it. Older
    records do not say them."""
    found = record.provenance.get("plugins")
    return [file for file in found if isinstance(file, str)] if isinstance(found, list) else []


def with_plugins(records: Iterable[Record]) -> list[str]:
    """Options that load the plugin files of these cells."""
    files = dict.fromkeys(file for record in records for file in plugins(record))
    return [word for file in files for word in ("--plugin", file)]


def line(*words: str) -> str:
    """A line for a shell."""
    return " ".join(map(quoted, words))


def quoted(word: str) -> str:
    """For a shell, as a person would where a spec has quotes of its own."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)

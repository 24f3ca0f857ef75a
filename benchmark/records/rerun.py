"""The command that runs the cell of a record again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from bdbench.records.record import REACTIVATED, SPECS, Record


def again(record: Record, results: Path) -> str:
    """A line that runs the cell of a record again: for a shell, or for Python where a plugin was
    defined in a notebook or a script, which no command finds.

    results: the folder of the record. The new record is written to a folder inside it, as a cell
        that has a record is not run.
    """
    return call(record) if record.provenance.code else command(record, results / "again")


def command(record: Record, results: Path) -> str:
    """The command that runs this cell alone and writes its record to `results`. On a CPU it uses as
    many threads as before: the last bits of numbers depend on it."""
    named, start, origin = record.cell.as_dict(), ["run"], record.provenance
    if record.given is not None:
        named["model"], start = record.given, ["evaluate", given_file(record)]
    words = [word for axis in SPECS for word in (f"--{axis}", named[axis])]
    words += ["--seed", str(record.cell.seed)]
    if (origin.device or "").startswith("cpu") and origin.threads not in (None, 1):
        words += ["--threads", str(origin.threads)]
    words += ["--curves"] * bool(record.curves)
    words += ["--reactivate"] * (record.count(REACTIVATED) is not None)
    return line("bdbench", *start, *words, *with_plugins([record]), "--results", str(results))


def call(record: Record) -> str:
    """The same in Python, without writing a record."""
    known, named = record.provenance.code, record.cell.as_dict()
    if record.given is not None:
        named["model"] = record.given
    words = [f"{axis}={n if axis in known else repr(n)}" for axis, n in named.items()]
    begun = "bd.run_cell("
    if record.given is not None:
        begun = f"bd.evaluate({given_file(record)!r}, "
    loaded = [f"bd.load_file({file!r})" for file in record.provenance.plugins]
    return "; ".join([*loaded, f"{begun}{', '.join(words)})"])


def given_file(record: Record) -> str:
    """The file of the network that a user brought, as it was named then; FILE if it had none."""
    given = record.provenance.given
    return (given and given.file) or "FILE"


def with_plugins(records: Iterable[Record]) -> list[str]:
    """Options that load the plugin files of these cells."""
    files = dict.fromkeys(file for record in records for file in record.provenance.plugins)
    return [word for file in files for word in ("--plugin", file)]


def line(*words: str) -> str:
    """A line for a shell."""
    return " ".join(map(quoted, words))


def quoted(word: str) -> str:
    """For a shell: in double quotes if a spec has single quotes of its own."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)

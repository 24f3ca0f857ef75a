"""What a run tells its user: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmark.records import Record

WIDEST = 26
"""Characters of a cell's short name, so that the bar and the time left fit 80 columns."""
PAUSE = 30.0
"""Seconds between two lines about one cell where there is no bar."""


class Reporter:
    """Follows a run of `cells` cells and `work` forward passes in all; a context manager.

    console: where to write; decides whether there is a bar
    """

    def __init__(self, cells: int, work: float, console: Console) -> None:
        self.cells, self.work, self.console = cells, work, console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=work)
        self._started = self._spoken = time.monotonic()
        self._number = 0
        self._finished = self._done = 0.0
        self._name, self._expected = "", 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def begin(self, name: str, short: str, work: float) -> None:
        """A cell that is expected to take `work` forward passes starts; `short` is for the bar."""
        self._number += 1
        number = f"[{self._number}/{self.cells}]"
        self._name, self._expected = f"{number} {name}", work
        self._done = 0.0
        self._spoken = time.monotonic()
        fitting = short if len(short) <= WIDEST else f"{short[: WIDEST - 1]}…"
        self._bar.update(self._task, description=escape(f"{number} {fitting}"))

    def advance(self, work: float) -> None:
        """So many forward passes are done."""
        self._done += work
        reached = self._finished + min(self._done, self._expected)
        self._bar.update(self._task, completed=reached)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._spoken > PAUSE:
            self._spoken = now
            share = min(self._done / self._expected, 1.0)
            left = ""
            if reached > 0.01 * self.work:
                seconds = (now - self._started) * (self.work - reached) / reached
                left = f", about {duration(seconds)} left in all"
            self.say(f"{self._name}: {share:.0%}{left}")

    def end(self, record: Record) -> None:
        """A cell is over: its line stays."""
        self._finished += self._expected
        self._bar.update(self._task, completed=self._finished)
        self.say(f"{self._name}: {summary(record)}")

    def skip(self, work: float) -> None:
        """A cell will not be run after all."""
        self._number += 1
        self._finished += work

    def say(self, line: str) -> None:
        """One line, above the bar where there is one."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def summary(record: Record) -> str:
    """What came out of a cell, in one line."""
    seconds = record.measured["seconds"]
    spent = duration(sum(seconds.values()))
    if record.metrics is None or record.error is not None:
        error = record.error or {"type": "?", "message": ""}
        first = (error["message"].splitlines() or [""])[0]
        return f"FAILED after {spent}: {error['type']}: {first}"
    parts = [
        f"{short} {100 * count.rate:.1f}"
        for short, name in (
            ("CA", "clean_accuracy"),
            ("ASR", "attack_success_rate"),
            ("floor", "asr_floor"),
        )
        if (count := record.metrics[name]) is not None
    ]
    flags = f" ({', '.join(record.flags)})" if record.flags else ""
    return f"{'  '.join(parts)}  {spent}{flags}"


def duration(seconds: float) -> str:
    """Such as `40 s`, `12 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"

"""Progress of a run: a bar with speed and remaining time on a terminal, else plain lines."""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Self

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from bdbench.machine.suspension import now
from bdbench.records.record import Record

COLUMNS = 100
"""Width of a line, at most."""
NARROWEST = 3
"""Columns that each part of a cell's name keeps in a line that is too long."""
WIDEST = 20
"""Characters of a cell's short name, so that bar, speed and remaining time fit 80 columns."""
PAUSE = 30.0
"""Seconds between two lines about one cell without a bar."""
LOOK = 0.1
"""Seconds between two samples of a cell's progress, at least."""
WINDOW = 10.0
"""Seconds over which the speed is measured."""


@dataclass
class _Running:
    """A running cell: its name, and its progress in forward passes.

    number: such as `[3/14]`
    name: in lines
    short: in the bar
    found: progress when this run started
    spoken: time of the last line about it
    looks: recent samples of the clock and of its progress
    """

    number: str
    name: Sequence[str]
    short: str
    expected: float
    found: float
    spoken: float
    done: float = 0.0
    looks: deque[tuple[float, float]] = field(default_factory=deque)

    def look(self, at: float) -> bool:
        """Take a sample of the progress; False if the last one is too recent."""
        if self.looks and at - self.looks[-1][0] < LOOK:
            return False
        self.looks.append((at, self.done))
        while self.looks[0][0] < at - WINDOW and len(self.looks) > 2:
            self.looks.popleft()
        return True

    def line(self, text: str, left: str = "") -> str:
        """A line about the cell, with the remaining time if it fits."""
        for rest in (f": {text}{left}", f": {text}"):
            line = f"{self.number} {titled(self.name, COLUMNS - len(self.number) - 1, rest)}"
            if cell_len(line) <= COLUMNS:
                break
        return line

    @property
    def reached(self) -> str:
        """Such as `40%, 20,000 images`."""
        done, whole = self.found + self.done, self.found + self.expected
        share = min(done / whole, 1.0) if whole else 1.0
        return f"{share:.0%}, {done / 3:,.0f} images"

    @property
    def speed(self) -> float:
        """Images per second, a forward and a backward pass each: the median over samples, which a
        pause does not change."""
        # A copy: each cell may have a thread that takes samples.
        looks = pairwise(list(self.looks))
        rates = [(after - before) / (end - start) for (start, before), (end, after) in looks]
        return median(rates) / 3 if rates else 0.0


def has_bar(console: Console) -> bool:
    """Whether a bar can be drawn: on a terminal, or in a notebook with widgets."""
    # Where FORCE_COLOR is set, rich takes a file for a terminal.
    drawable = console.is_terminal and console.file.isatty() and not console.is_dumb_terminal
    return drawable or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)


class Reporter:
    """Reports the progress of a run; a context manager.

    cells: number of cells
    work: forward passes left to do, without those that earlier runs have done
    console: where to write; decides whether there is a bar
    """

    def __init__(self, cells: int, work: float, console: Console) -> None:
        self.cells, self.work, self.console = cells, work, console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=8),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not has_bar(console),
            transient=True,
        )
        self._task = self._bar.add_task("", total=work, speed="", left="")
        # Time and progress of the first finished work; before it, processes started.
        self._begun: tuple[float, float] | None = None
        self._running: dict[str, _Running] = {}
        self._finished = 0.0
        self._numbers: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        # rich before 14.3 prints an empty line at the end of a disabled bar.
        if not self._bar.disable:
            self._bar.stop()

    def begin(
        self, key: str, name: Sequence[str], short: str, work: float, found: float = 0.0
    ) -> None:
        """A cell starts.

        name, short: in lines, and in the bar
        work: forward passes that it is expected to take
        found: forward passes of it that earlier runs have done
        """
        number = self._numbers.setdefault(key, len(self._numbers) + 1)
        place = f"[{number}/{self.cells}]"
        self._running[key] = _Running(place, name, short, work, found, now())
        self._draw()

    def advance(self, key: str, work: float) -> None:
        """A cell has done `work` more forward passes."""
        running = self._running.get(key)
        if running is None:
            return
        running.done += work
        at = now()
        if self._begun is None:
            self._begun = at, self._reached()
        if not running.look(at):
            return
        self._draw()
        if not has_bar(self.console) and at - running.spoken > PAUSE:
            running.spoken = at
            state = f"{running.reached}, {running.speed:,.0f} images/s"
            self.say(running.line(state, self._left(" in all")))

    def end(self, key: str, line: str) -> None:
        """A cell has finished or failed."""
        running = self._running.pop(key)
        self._finished += running.expected
        self._draw()
        self.say(running.line(line, self._left()))

    def suspend(self, key: str, line: str) -> None:
        """A cell has stopped running here without a result."""
        self.say(self._running.pop(key).line(line))

    def skip(self, key: str, work: float) -> None:
        """A cell is left out."""
        self._numbers.setdefault(key, len(self._numbers) + 1)
        self._finished += work

    def say(self, line: str) -> None:
        """One line, above the bar where there is one."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _reached(self) -> float:
        running = list(self._running.values())
        return self._finished + sum(min(cell.done, cell.expected) for cell in running)

    def _left(self, of: str = "") -> str:
        """The remaining time in words; empty at the end, and while it is not known."""
        seconds = self._seconds_left(now())
        if seconds is None or seconds < 0.5:
            return ""
        return f", about {duration(seconds)} left{of}"

    def _seconds_left(self, at: float) -> float | None:
        """At the average speed since the first step; None until 1 % of the work is done."""
        if self._begun is None:
            return None
        begun, before = self._begun
        reached = self._reached()
        if reached - before <= 0.01 * self.work:
            return None
        return max(0.0, (at - begun) * (self.work - reached) / (reached - before))

    def _draw(self) -> None:
        running = list(self._running.values())
        short = running[0].short if len(running) == 1 else f"{len(running)} at once"
        fitting = short if len(short) <= WIDEST else f"{short[: WIDEST - 1]}…"
        text = f"[{len(self._numbers)}/{self.cells}] {fitting if running else ''}"
        speed, left = sum(cell.speed for cell in running), self._seconds_left(now())
        self._bar.update(
            self._task,
            description=escape(text),
            completed=self._reached(),
            speed=f"{speed:,.0f} img/s" if speed else "",
            left="" if left is None else f"{duration(left)} left",
        )


def summary(record: Record) -> str:
    """Metrics, time from start to end and flags of a cell, in one line."""
    wall = record.measured.wall
    spent = [] if wall is None else [elapsed(wall)]
    if record.status == "failed":
        # A trial that did not start, or whose worker died, has no seconds.
        after = f" after {spent[0]}" if spent and record.measured.seconds.total else ""
        return f"FAILED{after}, key {record.key}"
    shares = [
        f"{short} {100 * count.rate:.1f}"
        for short, name in (("CA", "clean_accuracy"), ("ASR", "attack_success_rate"))
        if (count := record.count(name)) is not None
    ]
    return ", ".join([*shares, *spent, *record.flags])


def reason(record: Record) -> str:
    """Why a cell failed, in one line."""
    assert record.error is not None
    first = (record.error.message.splitlines() or [""])[0]
    return f"{record.error.type}: {first}"


def titled(name: Sequence[str], width: int, rest: str = "") -> str:
    """A name and the rest of a line. If they exceed `width` columns, the longest parts of the name
    lose their middle, down to `NARROWEST` columns each."""
    widest = max(map(cell_len, name), default=0)
    while widest > NARROWEST and cell_len(_joined(name, widest)) + cell_len(rest) > width:
        widest -= 1
    return f"{_joined(name, widest)}{rest}"


def _joined(name: Sequence[str], widest: int) -> str:
    return " · ".join(shortened(part, widest) for part in name)


def shortened(text: str, width: int) -> str:
    """A text in at most `width` columns, without its middle if it is longer."""
    if cell_len(text) <= width:
        return text
    left, right = text[: len(text) // 2], text[len(text) // 2 :]
    while cell_len(left) + 1 + cell_len(right) > width:
        if cell_len(left) > cell_len(right):
            left = left[:-1]
        else:
            right = right[1:]
    return f"{left}…{right}"


def elapsed(seconds: float) -> str:
    """Such as `40 s` or `1 min 10 s`; as `duration` from ten minutes."""
    whole = round(seconds)
    if not 60 <= whole < 600:
        return duration(seconds)
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def duration(seconds: float) -> str:
    """Such as `40 s`, `12 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"

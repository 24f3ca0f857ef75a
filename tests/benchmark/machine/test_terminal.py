"""A terminal whose output cannot be written."""

from __future__ import annotations

import errno
import os
from io import StringIO

import pytest

from bdbench.machine.terminal import Terminal
from bdbench.running.progress import Reporter


class Broken(StringIO):
    """Takes the first lines only."""

    def __init__(self, number: int, lines: int) -> None:
        super().__init__()
        self.number, self.lines = number, lines

    def write(self, text: str) -> int:
        if self.lines == 0:
            raise OSError(self.number, os.strerror(self.number))
        self.lines -= 1
        return super().write(text)


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("bar", [False, True])
def test_a_terminal_that_cannot_write_falls_silent(number: int, bar: bool) -> None:
    file = Broken(number, 2)
    file.isatty = lambda: bar  # type: ignore[method-assign]
    console = Terminal(file=file, width=100, _environ={"TERM": "xterm"})
    console.print("one")
    with Reporter(1, 3.0, console) as reporter:
        for line in ("two", "three", "four"):
            reporter.say(line)
        reporter.begin("a", ["cell"], "short", 3.0)
        reporter.advance("a", 3.0)
        reporter.end("a", "done")
    assert file.getvalue().startswith("one")
    assert "three" not in file.getvalue()
    assert console.quiet

"""Checks that tests of several commands share."""

import pytest

from bdbench.cli import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command refuses with."""
    assert main(arguments) == 2
    streams = capsys.readouterr()
    lines = streams.err.splitlines()
    assert len(lines) == 1, streams.err
    assert lines[0].startswith("bdbench: ")
    assert "Traceback" not in streams.err
    return lines[0]

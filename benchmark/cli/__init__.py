"""The command line. What a command needs is imported when it runs: help must answer at once."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from bdbench.cli import cache as cache
from bdbench.cli import data as data
from bdbench.cli import doctor as doctor
from bdbench.cli import plugins as plugins
from bdbench.cli import results as results
from bdbench.cli import run as run
from bdbench.cli.group import cli, say
from bdbench.models.plugins.errors import InvalidInput, one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 fine, 1 a cell failed, 2 bad input, 130 stopped."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # Also where a shell started this in the background, which has it ignore the first.
        signal.signal(number, _stop)
    try:
        code = cli.main(args=arguments, prog_name="bdbench", standalone_mode=False)
        return int(code or 0)
    except click.ClickException as error:
        return _refuse(error.format_message())
    except InvalidInput as error:
        return _refuse(str(error))
    except (KeyboardInterrupt, click.Abort):
        say("bdbench: stopped; the same command goes on from here", err=True)
        return 130


def entry() -> NoReturn:
    """The `bdbench` command."""
    warnings.showwarning = lambda message, *where: say(
        f"bdbench: warning: {one_line(str(message))}", err=True
    )
    sys.exit(main())


def _stop(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _refuse(message: str) -> int:
    say(f"bdbench: {one_line(message)}", err=True)
    return 2

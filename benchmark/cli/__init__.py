"""The command line. What a command needs is imported when it runs: help must answer at once."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn, TextIO

import click

from bdbench.cli import cache as cache
from bdbench.cli import data as data
from bdbench.cli import doctor as doctor
from bdbench.cli import network as network
from bdbench.cli import plugins as plugins
from bdbench.cli import results as results
from bdbench.cli import run as run
from bdbench.cli.group import cli, say
from bdbench.machine.threads import short_spin
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
    except OSError as error:
        # Of what surrounds a command: folders, disks, limits.
        where = f"{error.filename}: " if error.filename else ""
        return _refuse(f"{where}{error.strerror or error}")
    except (KeyboardInterrupt, click.Abort):
        say("bdbench: stopped; the same command goes on from here", err=True)
        return 130


def entry() -> NoReturn:
    """The `bdbench` command."""
    # Before torch is loaded, which a command does when it runs.
    os.environ.update(short_spin(os.environ))
    _open_streams()
    # No figure is shown in a window, and the name of a window system may be one of a notebook.
    os.environ["MPLBACKEND"] = "agg"
    warnings.showwarning = lambda message, *where: say(
        f"bdbench: warning: {one_line(str(message))}", err=True
    )
    sys.exit(main())


def _open_streams() -> None:
    """Make all three standard streams usable: a closed one leads nowhere, or else the next file
    that is opened would take its place; and what an encoding lacks becomes a question mark."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # Takes the lowest number that is free.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
        stream: TextIO = getattr(sys, name)
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[attr-defined]


def _stop(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _refuse(message: str) -> int:
    say(f"bdbench: {one_line(message)}", err=True)
    return 2

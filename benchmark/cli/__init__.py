"""The command line. A command imports what it needs when it runs, so that help answers at once."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
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
from bdbench.machine.surroundings import FOLDER_REMOVED, working_folder
from bdbench.machine.threads import short_spin
from bdbench.models.plugins.blame import blaming
from bdbench.models.plugins.errors import InvalidInput, one_line

INTERRUPTED = 130
"""The exit code after Ctrl-C or SIGTERM."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 success, 1 failure, 2 bad input, 130 interrupt."""
    # A shell that starts a command in the background makes it ignore SIGINT.
    _on_interrupt(_interrupt)
    try:
        with blaming("the code of a plugin"):
            code = cli.main(args=arguments, prog_name="bdbench", standalone_mode=False)
        return int(code or 0)
    except click.ClickException as error:
        return _refuse(error.format_message())
    except InvalidInput as error:
        return _refuse(str(error))
    except OSError as error:
        if working_folder() is None:
            return _refuse(FOLDER_REMOVED)
        # From the surroundings of a command: folders, disks, limits.
        where = f"{error.filename}: " if error.filename else ""
        return _refuse(f"{where}{error.strerror or error}")
    except (KeyboardInterrupt, click.Abort):
        say("bdbench: interrupted; run the same command again to resume", err=True)
        return INTERRUPTED


def entry() -> NoReturn:
    """The `bdbench` command."""
    # It must be set before a command loads torch.
    os.environ.update(short_spin(os.environ))
    _open_streams()
    # Figures open no window, and MPLBACKEND may name the backend of a notebook.
    os.environ["MPLBACKEND"] = "agg"
    warnings.showwarning = lambda message, *where: say(
        f"bdbench: warning: {one_line(str(message))}", err=True
    )
    try:
        code = main()
    except KeyboardInterrupt:  # one more, while the first was reported
        code = INTERRUPTED
    _on_interrupt(_leave)
    sys.exit(code)


def _open_streams() -> None:
    """Make all three standard streams usable. A closed one is opened on the null device, or else
    the next file that is opened would take its place. Characters that the encoding of a stream
    lacks become question marks."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # A new descriptor gets the lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
        stream: TextIO = getattr(sys, name)
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[attr-defined]


def _on_interrupt(handle: Callable[[int, Any], NoReturn]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _leave(number: int, frame: Any) -> NoReturn:
    """At the end of the program, where an exception would be shown in the midst of cleaning up. The
    processes of cells end with this one."""
    os._exit(INTERRUPTED)


def _refuse(message: str) -> int:
    say(f"bdbench: {one_line(message)}", err=True)
    return 2

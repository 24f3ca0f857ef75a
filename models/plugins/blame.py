"""Trace an error to a line of the user's own code: the one nearest to where it was raised."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bdbench.models.plugins.errors import SIGNALS, InvalidInput
from bdbench.models.plugins.local import is_user_code

installed_packages: set[str] = set()
"""The packages of installed plugins, whose code is that of users here."""


def reason(error: BaseException) -> str:
    """An error in words, without the file and line that a SyntaxError repeats."""
    if isinstance(error, InvalidInput):
        return str(error)
    message = error.msg if isinstance(error, SyntaxError) else error
    return f"{type(error).__name__}: {message}"


def location(error: BaseException) -> tuple[Path, int] | None:
    """File and line of the user's code nearest to where an error was raised; None if the traceback
    has no user code."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        # Code that does not parse has no frame.
        file = Path(error.filename)
        if file.is_file():
            return file, error.lineno
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        file, module = Path(frame.f_code.co_filename), frame.f_globals.get("__name__")
        own = is_user_code(module, file) or str(module).partition(".")[0] in installed_packages
        if own and file.is_file():
            found = file, line
    return found


@contextmanager
def blaming(what: str, source: str = "") -> Iterator[None]:
    """Turn an error that user code raises inside the block into an `InvalidInput` that names the
    file and the line. So does what is no Exception, such as a SystemExit, which would end the
    command.

    what: the work inside the block, as the message begins
    source: the file of the plugin, for an error without a line of its own, as in the `__init__` of
        a dataclass; empty for one that is built in
    """
    try:
        yield
    except (InvalidInput, *SIGNALS):
        raise
    except BaseException as error:
        found = location(error)
        if found is None and not source:
            raise
        where = f"at line {found[1]} of {found[0]}" if found else f"in {source}"
        message = f"{what} failed {where}: {reason(error)}"
        raise InvalidInput(message, of_code=True) from error

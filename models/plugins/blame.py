"""Whose line an error is of: the nearest one of the user's own code."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.plugins.local import is_the_users


def reason(error: BaseException) -> str:
    """An error in words, without the place that a SyntaxError repeats."""
    if isinstance(error, InvalidInput):
        return str(error)
    said = error.msg if isinstance(error, SyntaxError) else error
    return f"{type(error).__name__}: {said}"


def place(error: BaseException) -> tuple[Path, int] | None:
    """File and line of the user's code that are nearest to where an error was raised; None where
    it has passed through no such code."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        # What cannot be read has no frame.
        file = Path(error.filename)
        if file.is_file():
            return file, error.lineno
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if is_the_users(frame.f_globals.get("__name__"), file) and file.is_file():
            found = file, line
    return found


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """An error that the user's code raises inside becomes an `InvalidInput` with its place."""
    try:
        yield
    except InvalidInput:
        raise
    except Exception as error:
        found = place(error)
        if found is None:
            raise
        file, line = found
        said = f"{what} failed at line {line} of {file}: {reason(error)}"
        raise InvalidInput(said, of_code=True) from error

"""Warnings of ours that tell a user what happens while the work goes on."""

from __future__ import annotations

import warnings


def notify(message: str, kind: type[Warning] = UserWarning, stacklevel: int = 1) -> None:
    """Warn, also where the user has made errors of all warnings: that is meant for code, and would
    end the work that the message is about.

    stacklevel: as in `warnings.warn`, 1 for the caller
    """
    try:
        warnings.warn(message, kind, stacklevel + 1)
    except kind:
        _show(message, kind, stacklevel + 2)


def _show(message: str, kind: type[Warning], stacklevel: int) -> None:
    """Warn in spite of a filter."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", kind)
        warnings.warn(message, kind, stacklevel)

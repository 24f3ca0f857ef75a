"""Exceptions that fail a cell, and how a record states them: without the folders of this machine.

Paths become relative to the folder from which a module was imported, as in
`bdbench/trial/harness.py`, to the working folder, or to the home folder, `~`. Any other path is
shortened to its last name.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Sequence

import torch

import bdbench.attacks
import bdbench.defenses
import bdbench.models
from bdbench.machine.surroundings import working_folder
from bdbench.models.plugins.errors import Signal

_PACKAGES = (bdbench, bdbench.attacks, bdbench.defenses, bdbench.models)
_QUOTED = re.compile(r"""(?P<quote>['"])/(?P<top>[^/'"\n]+)(?:/[^'"\n]*)?(?P=quote)""")
_BARE = re.compile(r"""(?<![\w.~/:<-])/(?P<top>[\w.+@~-]+)(?:/[\w.+@~-]+)*/?""")


OF_CPU = ("can't allocate memory", "std::bad_alloc")
"""In messages of a RuntimeError of torch's CPU allocator."""
OF_GPU = ("out of memory", "_STATUS_ALLOC_FAILED")
"""In those of CUDA, cuBLAS and cuDNN."""
LESS_MEMORY = "out of memory: use fewer --jobs, a smaller batch_size or fewer --train-images"


LONGEST = 20_000
"""Characters of a message or traceback that a record keeps: the message may quote a tensor."""


class TimeLimit(Signal):
    """A cell took longer than --limit."""


def over_limit(seconds: float) -> TimeLimit:
    """The error of a cell that took longer than `seconds`."""
    return TimeLimit(
        f"stopped at --limit {seconds:g} s; run again to resume from the last checkpoint"
    )


class InvalidResults(Exception):
    """What a trial returned does not fit into a record."""


class WorkerDied(Exception):
    """The process that ran a cell died."""


def worker_died(last: str, attempts: int) -> WorkerDied:
    """The error of a cell that was given up.

    last: how the last attempt ended, such as "worker killed (SIGSEGV)"
    """
    return WorkerDied(f"{last}; gave up after {attempts} attempts")


def error_of(error: BaseException) -> dict[str, str]:
    """Type, message and traceback, of which long ones lose their middle. If memory ran out, the
    message ends with what to change."""
    advice = LESS_MEMORY if out_of_memory(error) else ""
    return {
        "type": type(error).__name__,
        "message": "; ".join(filter(None, (without_folders(_ends(str(error))), advice))),
        "traceback": without_folders(_ends("".join(traceback.format_exception(error)))),
    }


def _ends(text: str) -> str:
    """The text, or both ends of a long one."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"


def out_of_gpu_memory(error: BaseException) -> bool:
    """Whether CUDA, cuBLAS or cuDNN could not allocate memory."""
    # torch.OutOfMemoryError has this name in older versions.
    return isinstance(error, torch.cuda.OutOfMemoryError) or _says(error, OF_GPU)


def out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch could not allocate memory, on a CPU or a GPU."""
    return isinstance(error, MemoryError) or out_of_gpu_memory(error) or _says(error, OF_CPU)


def _says(error: BaseException, texts: Sequence[str]) -> bool:
    """Whether a RuntimeError has one of these texts in its message."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def without_folders(text: str) -> str:
    """The text without absolute paths of this machine."""
    for folder, short in _folders():
        place = rf"(?<![\w.~/-]){re.escape(folder)}"
        inside = f"{short}/" if short else ""
        text = re.sub(rf"{place}/+(?=[^/\s'\"])", inside, text)
        text = re.sub(rf"{place}/?(?![\w./-])", short or ".", text)
    return _BARE.sub(_last_name, _QUOTED.sub(_last_name, text))


def _folders() -> list[tuple[str, str]]:
    """Folders and what replaces them, inner folders first."""
    names = {os.path.expanduser("~"): "~"}
    here = str(working_folder() or "")
    names |= dict.fromkeys([*sysconfig.get_paths().values(), *sys.path, here], "")
    names |= {each.__path__[0]: each.__name__.replace(".", "/") for each in _PACKAGES}
    known = [path for path in names if here or os.path.isabs(path)]
    both = {each: names[path] for path in known for each in (path, os.path.realpath(path))}
    found = [(path.rstrip("/"), short) for path, short in both.items() if os.path.isabs(path)]
    return sorted((pair for pair in found if pair[0]), key=lambda pair: -len(pair[0]))


def _last_name(found: re.Match[str]) -> str:
    """The last name of a path. Text whose first name is not a folder, as in a division, is not a
    path."""
    if not os.path.isdir(f"/{found['top']}"):
        return found[0]
    quote = found.groupdict().get("quote", "")
    return quote + os.path.basename(found[0].strip(quote).rstrip("/")) + quote

"""What was raised, as a record has it for others to read: without the folders of this machine.

Paths are relative to the folder a module was imported from, such as `bdbench/trial/harness.py`, or
to the working folder, or to the home folder, `~`. Of any other path the last name is left.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import traceback

import bdbench.attacks
import bdbench.defenses
import bdbench.models

_PACKAGES = (bdbench, bdbench.attacks, bdbench.defenses, bdbench.models)
_QUOTED = re.compile(r"""(?P<quote>['"])/(?P<top>[^/'"\n]+)(?:/[^'"\n]*)?(?P=quote)""")
_BARE = re.compile(r"""(?<![\w.~/:<-])/(?P<top>[\w.+@~-]+)(?:/[\w.+@~-]+)*/?""")


def error_of(error: BaseException) -> dict[str, str]:
    """Type, message and traceback."""
    return {
        "type": type(error).__name__,
        "message": without_folders(str(error)),
        "traceback": without_folders("".join(traceback.format_exception(error))),
    }


def without_folders(text: str) -> str:
    """The text, in which no absolute path of this machine is left."""
    for folder, short in _folders():
        place = rf"(?<![\w.~/-]){re.escape(folder)}"
        inside = f"{short}/" if short else ""
        text = re.sub(rf"{place}/+(?=[^/\s'\"])", inside, text)
        text = re.sub(rf"{place}/?(?![\w./-])", short or ".", text)
    return _BARE.sub(_last_name, _QUOTED.sub(_last_name, text))


def _folders() -> list[tuple[str, str]]:
    """With what stands for them; an inner one before those that it is in."""
    names = {os.path.expanduser("~"): "~"}
    names |= dict.fromkeys([*sysconfig.get_paths().values(), *sys.path, os.getcwd()], "")
    names |= {each.__path__[0]: each.__name__.replace(".", "/") for each in _PACKAGES}
    both = {each: short for path, short in names.items() for each in (path, os.path.realpath(path))}
    found = [(path.rstrip("/"), short) for path, short in both.items() if os.path.isabs(path)]
    return sorted((pair for pair in found if pair[0]), key=lambda pair: -len(pair[0]))


def _last_name(found: re.Match[str]) -> str:
    """Of a path; what begins with no folder that there is, such as a division, is none."""
    if not os.path.isdir(f"/{found['top']}"):
        return found[0]
    quote = found.groupdict().get("quote", "")
    return quote + os.path.basename(found[0].strip(quote).rstrip("/")) + quote

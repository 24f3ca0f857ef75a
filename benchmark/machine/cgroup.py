"""Control groups, by which a system limits what a process may take."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path


def groups(system: Path) -> list[Path]:
    """The folders of the group of this process and of those above, whose limits hold for it too;
    none where that cannot be told.

    system: the folder above `proc` and `sys`
    """
    with suppress(OSError):
        text = (system / "proc/self/cgroup").read_text()
        return [
            system / "sys/fs/cgroup" / group
            for name in re.findall(r"^0::/(.*)$", text, re.MULTILINE)
            for group in (Path(name), *Path(name).parents)
        ]
    return []

"""Control groups, with which Linux limits the memory and cores of a process."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path


def groups(system: Path) -> list[Path]:
    """Folders of the control group of this process and of its parents, whose limits hold too; empty
    where they are not known.

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

"""Control groups, with which Linux limits the memory and cores of a process."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path


def groups(system: Path) -> list[Path]:
    """Folders of the control groups of this process and of their parents, whose limits hold too;
    empty where they are not known. Version 1 has a group for each controller.

    system: the folder above `proc` and `sys`
    """
    with suppress(OSError):
        text = (system / "proc/self/cgroup").read_text()
        return [
            system / "sys/fs/cgroup" / controller / group
            for controllers, name in re.findall(r"^\d+:([^:]*):/(.*)$", text, re.MULTILINE)
            for controller in controllers.split(",")
            for group in (Path(name), *Path(name).parents)
        ]
    return []

"""What ran: versions, device, processor and the commit of the code."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

FOLDERS = ("attacks", "benchmark", "defenses", "models")
HOME = "benchmark/machine/"
"""The folder of this file in our repository."""
LIBRARIES = ("bdbench", "torch", "torchvision", "numpy", "pandas", "safetensors", "pyarrow")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "source tree" if name == "bdbench" else "absent"
    return found


@functools.cache
def device_name(device: torch.device) -> str:
    """Such as `cuda: NVIDIA H200` or `cpu: Intel Xeon`."""
    if device.type == "cuda" and torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name(device)}"
    # The names of the GPUs of a cluster are not known here.
    return f"cpu: {processor()}" if device.type == "cpu" else device.type


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@functools.cache
def commit() -> str | None:
    """The git commit of the running code, with `+` if files differ from it; None outside git, and
    for a copy installed inside the repository of another project."""
    return commit_of(Path(__file__).resolve())


def commit_of(file: Path) -> str | None:
    """The commit of the repository whose `HOME` holds a file; None for a file that git does not
    track, or that belongs to another project."""

    # Variables of a git hook name another repository or index.
    environment = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}

    def git(*words: str) -> str:
        return subprocess.run(
            # Without locks, as the repository may be in use.
            ["git", "--no-optional-locks", *words],
            cwd=file.parent,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", file.name)
        prefix, head = git("rev-parse", "--show-prefix"), git("rev-parse", "--short=12", "HEAD")
        folders = [f":/{folder}/*.py" for folder in FOLDERS]
        # A new file is code too: it may register a plugin.
        changes = git("status", "--porcelain", "--untracked-files=all", "--", *folders)
    except (OSError, subprocess.SubprocessError):
        return None
    if prefix != HOME:
        return None
    return head + ("+" if changes else "")

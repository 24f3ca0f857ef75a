"""Where a number comes from: versions, device, sources and data."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from bdbench.cell import REGISTRIES, Cell, recipe_of
from bdbench.datasets.base import Dataset
from bdbench.models import registry

PLUGINS = ("bdbench.attacks.", "bdbench.defenses.", "bdbench.datasets.")
LIBRARIES = ("bdbench", "torch", "torchvision", "numpy", "pandas", "safetensors", "pyarrow")


def of(cell: Cell, device: torch.device, dataset: Dataset | None) -> dict[str, Any]:
    """All of it for one cell, as JSON values; without a data set where none was loaded."""
    return {
        "versions": versions(),
        "device": device_name(device),
        "precision": recipe_of(cell.recipe).precision,
        "tf32": device.type == "cuda" and torch.backends.cudnn.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled() or device.type == "cpu",
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "sources": sources(cell),
        "data_sha256": dataset and dataset.sha256,
        "data_notes": list(dataset.notes) if dataset else [],
    }


@functools.cache
def versions() -> dict[str, str]:
    """Of Python and the libraries that touch a number."""
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
    # The GPUs of a cluster have no name here.
    return f"cpu: {processor()}" if device.type == "cpu" else device.type


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@functools.cache
def commit() -> str | None:
    """The git commit of the running code, with `+` where files differ from it; None outside git."""
    folder = Path(__file__).parent
    try:
        head, changes = (
            subprocess.run(
                ["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for words in (
                ["rev-parse", "--short=12", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no", "--", "*.py"],
            )
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changes else "")


def sources(cell: Cell) -> dict[str, str]:
    """12 hex digits for each plugin of a cell, with the code it stands on, and for all training."""
    found = {"training": _hash(*sorted(Path(registry.__file__).parent.glob("*.py")))}
    for axis, plugins in REGISTRIES.items():
        parts = [plugins.factory(name) for name in plugins.parts(getattr(cell, axis))]
        files = {file for part in parts for file in imported(Path(inspect.getfile(part)))}
        found[axis] = _hash(*sorted(files))
    return found


@functools.cache
def imported(file: Path) -> frozenset[Path]:
    """The file and all files of attacks, defenses and data sets that it imports, however far."""
    found = {file}
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PLUGINS):
            module = importlib.util.find_spec(node.module or "")
            if module is not None and module.origin is not None:
                found |= imported(Path(module.origin))
    return frozenset(found)


@functools.cache
def _hash(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]

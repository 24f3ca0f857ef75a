"""Fixtures of several test files: a small data set, golden files, and an isolated cache."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from builders import ROOT
from hypothesis import HealthCheck, settings

from bdbench.cells.cell import REGISTRIES
from bdbench.models.data import ImageSet
from bdbench.models.observer import Observer, observed_by
from bdbench.models.plugins import notices
from bdbench.models.rng import stream
from bdbench.models.scope import num_threads
from bdbench.trial import company

# The time that a machine takes to draw an example says nothing about the code.
settings.register_profile(
    "any machine",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any machine")


LONGEST = (
    "test_contract",
    "test_package",
    "test_neighbours",
    "test_gpu_bench",
    "test_docs",
    "test_fine_tuning",
    "test_harness",
)
"""Files that take a minute or more. They start first, so that no process waits for one at last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's cache or data."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("BDBENCH_CACHE", str(folder))
    monkeypatch.delenv("BDBENCH_DATA", raising=False)
    return folder


@pytest.fixture(autouse=True)
def no_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning of ours that a test does not expect is an error, too."""

    def refuse(message: str, kind: type[Warning], stacklevel: int) -> None:
        raise kind(message)

    monkeypatch.setattr(notices, "_show", refuse)


@pytest.fixture(autouse=True)
def no_company(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test makes does not depend on the plugins of earlier ones in this process."""
    before = company._imported()
    monkeypatch.setattr(company, "_ran", set())
    monkeypatch.setattr(company, "_imported", lambda find=company._imported: find() - before)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Train on one thread, as the networks of tests are too small for two."""
    with num_threads(1):
        yield


@pytest.fixture(autouse=True, scope="session")
def unsynced() -> Iterator[None]:
    """Do not wait for the disk, in this process: no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget afterwards what a test registers."""
    for registry in REGISTRIES.values():
        registry.names()
        monkeypatch.setattr(registry, "_factories", dict(registry._factories))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-golden",
        action="store_true",
        help="write the tables in tests/golden/ instead of comparing with them",
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with a file in `golden/`. With `--write-golden` the file is written, and its
    difference is to be read before it is committed."""

    def compare(name: str, text: str) -> None:
        path = ROOT / "tests/golden" / name
        if request.config.getoption("write_golden"):
            path.write_text(text)
        assert text == path.read_text(), name

    return compare


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `bdbench` with some arguments, as the leader of a group of processes that ends with the
    test."""

    def end(run: subprocess.Popen[str]) -> None:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)

    with ExitStack() as started:

        def start(*arguments: str) -> subprocess.Popen[str]:
            run = subprocess.Popen(
                [sys.executable, "-m", "bdbench", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
            started.enter_context(run)
            started.callback(end, run)
            return run

        yield start


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, where commands write their files."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def remove_folder(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the current folder one that was removed, to all that asks for its path."""

    def remove() -> None:
        monkeypatch.setattr(os, "getcwd", Mock(side_effect=FileNotFoundError(2, "No such file")))

    return remove


@pytest.fixture
def close_folder(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a folder one that may not be entered, also for the superuser."""

    def close(folder: Path, stat: Callable[..., Any] = Path.stat) -> None:
        def guarded(self: Path, **how: Any) -> Any:
            if folder in self.parents:
                raise PermissionError(13, "Permission denied", str(self))
            return stat(self, **how)

        monkeypatch.setattr(Path, "stat", guarded)

    return close


@pytest.fixture
def images() -> ImageSet:
    """60 random images of 16 x 16 pixels, six of each of ten classes."""
    rng = stream(0, "test images")
    pixels = torch.randint(0, 256, (60, 3, 16, 16), dtype=torch.uint8, generator=rng)
    return ImageSet(pixels, torch.arange(60) % 10, 10)


class Counter(Observer):
    def __init__(self) -> None:
        self.work = 0

    def forward(self, images: int) -> None:
        self.work += images

    def backward(self, images: int) -> None:
        self.work += 2 * images


@pytest.fixture
def work() -> Callable[[Callable[[], object]], int]:
    """Forward passes of one image inside a call, where a backward pass counts two."""

    def count(call: Callable[[], object]) -> int:
        with observed_by(counter := Counter()):
            call()
        return counter.work

    return count

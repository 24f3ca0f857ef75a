"""A record does not depend on the plugins of other cells, nor on how many run at once."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest

from bdbench.cli import main

PLUGIN = Path(__file__).with_name("neighbours.py")
DEEDS = re.findall(r"^def (\w+)\(\) -> None:", PLUGIN.read_text(), re.MULTILINE)
FATAL = {"leave_system", "interrupt", "leave_at_once", "abort", "become_another", "die"}
FATAL |= {"kill_parent", "recurse", "exhaust_memory"}
"""These leave nothing to evaluate."""
SILENT = {"forbid_files", "close_umask"}
"""These may leave no record."""
FIXED = ["--epochs=1", "--device=cpu", "--precision=fp32", "--seeds=1"]
SIZES = "toy(train_images=40, test_images=40, image_size=16)"
GOOD = {"attack": "badnets", "defense": "none", "model": "wrn16_1"}


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    """The one process of all commands of this file, as its start takes longer than the cells. Each
    cell is in a process of its own, as always."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


def command(folder: Path, *words: str) -> tuple[int, str]:
    """The exit code of a command and what it writes to stderr."""
    # As many threads in every cell, however many of them run at once.
    os.environ.update(BDBENCH_CACHE=str(folder / "cache"), OMP_NUM_THREADS="1")
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as said:
        code = main(["run", f"--dataset={SIZES}", *FIXED, f"--results={folder}", *words])
    return code, said.getvalue()


def run(process: Executor, folder: Path, *words: str) -> int:
    code, said = process.submit(command, folder, *words).result()
    assert "Traceback" not in said, said
    return code


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (folder / "records").glob("*.json")]


def lasting(record: dict[str, Any]) -> dict[str, Any]:
    return {part: value for part, value in record.items() if part not in ("measured", "checksum")}


@pytest.fixture(scope="module")
def alone(process: Executor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of the good cell when it runs alone."""
    folder = tmp_path_factory.mktemp("alone")
    assert run(process, folder, *(f"--{axis}={text}" for axis, text in GOOD.items())) == 0
    (record,) = records(folder)
    return lasting(record)


def some() -> dict[str, list[str]]:
    """Of the deeds a third for each axis; the slow tests have all of them on each."""
    return {axis: DEEDS[n :: len(GOOD)] for n, axis in enumerate(GOOD)}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("axis", "jobs", "deeds"),
    [
        *((axis, "auto", deeds) for axis, deeds in some().items()),
        *(
            pytest.param(axis, jobs, DEEDS, marks=pytest.mark.slow)
            for axis in GOOD
            for jobs in ("auto", "1")
        ),
    ],
    ids=lambda value: f"{len(value)} deeds" if isinstance(value, list) else value,
)
def test_no_neighbour_changes_a_record(
    axis: str,
    jobs: str,
    deeds: list[str],
    process: Executor,
    alone: dict[str, Any],
    tmp_path: Path,
) -> None:
    assert len(DEEDS) >= 15
    deeds = [*deeds, *(["in_place"] if axis != "model" else [])]
    bad = {deed: f"neighbour(deed={deed!r})" for deed in deeds}
    chosen = {**{other: [text] for other, text in GOOD.items()}, axis: [*bad.values(), GOOD[axis]]}
    words = [f"--{each}={text}" for each, texts in chosen.items() for text in texts]
    # 2 where a failure is one of bad input, as that of a model that cannot be built is.
    assert run(process, tmp_path, *words, f"--plugin={PLUGIN}", f"--jobs={jobs}") in (1, 2)
    found = {each["labels"][axis]: each for each in records(tmp_path)}
    assert lasting(found.pop(GOOD[axis])) == alone
    assert found.keys() >= {bad[deed] for deed in bad.keys() - SILENT}
    failed = {label for label, each in found.items() if each["status"] == "failed"}
    assert failed >= {bad[deed] for deed in FATAL & bad.keys()}
    if axis != "model":
        error = found[bad["in_place"]]["error"]
        assert error["type"] == "WroteInPlace"
        assert error["message"].startswith(f"{axis} neighbour(deed='in_place') wrote in the ")
    left = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    assert not [words for words in left if "1234.5" in " ".join(words)]


HOOK = "nn.modules.module.register_module_forward_hook(lambda layer, given, out: 1.1 * out)"
"""Changes all layers of a process."""
LOUD = '''"""A defense whose file changes the process that imports it, nobody, 2026."""
from dataclasses import dataclass

import numpy
import torch

from bdbench.defenses import Defense, register

torch.set_default_dtype(torch.float64)
torch.set_num_threads(3)
torch.manual_seed(1)
numpy.random.seed(1)
torch.backends.mkldnn.enabled = False


@register("loud")
@dataclass(frozen=True)
class Loud(Defense):
    """Nothing."""

    def fit(self, data, context):
        return context.build().eval()
'''


HOOKED = f'''"""A defense whose file changes all layers of the process that imports it."""
from dataclasses import dataclass

from torch import nn

from bdbench.defenses import Defense, register

{HOOK}


@register("hooked")
@dataclass(frozen=True)
class Hooked(Defense):
    """Nothing."""

    undefended = 1

    def fit(self, data, context):
        return context.undefended()
'''


@pytest.mark.parametrize(
    ("name", "text"), [("loud", LOUD), ("hooked", HOOKED)], ids=["settings", "layers"]
)
def test_what_a_file_does_when_it_is_imported_is_for_its_own_cells(
    name: str, text: str, process: Executor, alone: dict[str, Any], tmp_path: Path
) -> None:
    """Also where its cell is the first to need what others share."""
    file = tmp_path / f"{name}.py"
    file.write_text(text)
    axes = [f"--{axis}={good}" for axis, good in GOOD.items()]
    words = [f"--defense={name}", *axes, f"--plugin={file}", "--jobs=1"]
    assert run(process, tmp_path, *words) in (0, 1)
    (good,) = (each for each in records(tmp_path) if each["labels"]["defense"] == "none")
    assert lasting(good) == alone


SILENT_FILE = f'''"""A file that registers nothing and changes all layers."""
from torch import nn

{HOOK}
'''
GREEDY = '''"""A data set with the images of toy, whose file changes the process that imports it."""
from dataclasses import dataclass

import torch

from bdbench.datasets import register
from bdbench.datasets.toy import Toy

torch.backends.mkldnn.enabled = False


@register("greedy")
@dataclass(frozen=True)
class Greedy(Toy):
    """As toy has them."""

    name = "greedy"
'''


@pytest.mark.parametrize("where", ["--jobs=1", "--in-process"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SILENT_FILE, []),
        (HOOKED, ["--defense=hooked"]),
        (GREEDY, [f"--dataset={SIZES.replace('toy', 'greedy')}"]),
    ],
    ids=["a file without a plugin", "a defense", "a data set"],
)
def test_what_runs_beside_a_file_is_not_found_by_later_runs(
    text: str,
    words: list[str],
    where: str,
    process: Executor,
    alone: dict[str, Any],
    tmp_path: Path,
) -> None:
    """Also if both ran in the process of a command, as with `--in-process` and in a notebook."""
    file = tmp_path / "mine.py"
    file.write_text(text)
    axes = [f"--{axis}={good}" for axis, good in GOOD.items()]
    # One that ends with the command, as the file stays imported there.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own:
        assert run(own, tmp_path, *words, *axes, f"--plugin={file}", where) in (0, 1)
    if where != "--in-process":
        usual = [each for each in records(tmp_path) if each["labels"] == alone["labels"]]
        assert list(map(lasting, usual)) == [alone]
    shutil.rmtree(tmp_path / "records")
    assert run(process, tmp_path, *axes) == 0
    assert list(map(lasting, records(tmp_path))) == [alone]


LEAVING = f'''"""An attack that leaves all layers of the process changed."""
from dataclasses import dataclass

from torch import nn

from bdbench.attacks import Attack, dirty_label, register


@register("leaving")
@dataclass(frozen=True)
class Leaving(Attack):
    """Nothing."""

    def trigger(self, images):
        return 255 - images

    def poison(self, clean, rng):
        {HOOK}
        return dirty_label(self, clean, rng)
'''


def test_what_an_attack_leaves_behind_is_not_in_the_record_of_its_first_cell(
    process: Executor, tmp_path: Path
) -> None:
    """The second run finds the poisoned set, and trains the network again."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    axes = [f"--{axis}={text}" for axis, text in {**GOOD, "attack": "leaving"}.items()]
    found = []
    for _ in range(2):
        assert run(process, tmp_path, *axes, f"--plugin={tmp_path / 'leaving.py'}") == 0
        found += map(lasting, records(tmp_path))
        shutil.rmtree(tmp_path / "records")
        shutil.rmtree(tmp_path / "cache/undefended")
    assert found[0] == found[1]

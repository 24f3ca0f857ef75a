"""The plugins printed in CONTRIBUTING.md are whole and short, and they run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bdbench.attacks.registry import attacks
from bdbench.cells.cell import cell
from bdbench.defenses.registry import defenses
from bdbench.models.plugins.registry import load_file
from bdbench.models.training.recipe import Recipe
from bdbench.storage.cache import Cache
from bdbench.trial.harness import Harness

PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
LONGEST = 30
MODULE = "bdbench_plugin_printed"


@pytest.fixture
def unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers or imports is forgotten afterwards."""
    for registry in (attacks, defenses):
        registry.names()
        monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    monkeypatch.setitem(sys.modules, MODULE, ModuleType(MODULE))


def test_there_is_a_defense_and_an_attack() -> None:
    kinds = [re.findall(r"^from (\w+) import register$", block, re.MULTILINE) for block in BLOCKS]
    assert kinds == [["defenses"], ["attacks"]]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
@pytest.mark.usefixtures("unregistered")
def test_a_printed_plugin_is_short_and_runs(block: str, tmp_path: Path) -> None:
    assert len(block.splitlines()) <= LONGEST
    known = {*attacks.names(), *defenses.names()}
    file = tmp_path / "printed.py"
    file.write_text(block, "utf-8")
    load_file(file)
    names = {*attacks.names(), *defenses.names()} - known
    assert len(names) == 1
    name = names.pop()
    record = Harness(Cache(tmp_path / "cache"), [], torch.device("cpu")).run(
        cell(
            "toy(train_images=100, test_images=50)",
            "wrn16_1",
            name if name in attacks.names() else "badnets",
            name if name in defenses.names() else "none",
            Recipe(epochs=1, batch_size=32, padding=0),
            seed=0,
        )
    )
    assert record.status == "ok", record.error
    assert record.diagnostics["poisoned_images"] == 10

"""Estimates beside what was measured, and refusals with the numbers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from bdbench.cells import grid
from bdbench.cells.cell import Cell, cell
from bdbench.cells.suites import suite
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.training.recipe import Recipe
from bdbench.records.files import write
from bdbench.running import needs
from bdbench.running.needs import Need, cache_growth, check_needs, estimate, footprint, free_memory
from bdbench.storage.cache import Cache
from bdbench.storage.maintenance import KINDS, contents, sweep
from bdbench.trial.harness import Harness

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
DATASET = "toy(train_images=120, test_images=80)"


def made(attack: str = "badnets", defense: str = "none", dataset: str = DATASET, **f: Any) -> Cell:
    recipe = replace(Recipe(epochs=1, batch_size=64), **f)
    return cell(dataset, "wrn16_1", attack, defense, recipe, seed=0)


@pytest.mark.parametrize(
    ("dataset", "attack", "defense", "peak"),
    [
        ("cifar10(train_images=10000)", "badnets", "none", 1314e6),
        ("cifar10(train_images=10000)", "badnets", "cbd(t1=25)", 1352e6),
        ("cifar10(train_images=10000)", "blend", "mcr", 1523e6),
        ("cifar10(train_images=10000)", "blend", "abl(unlearning_epochs=10)", 1523e6),
        ("cifar10", "wanet", "none", 1465e6),
        ("cifar10", "dynamic", "none", 1519e6),
    ],
)
def test_memory_is_what_runs_on_two_cores_took(
    dataset: str, attack: str, defense: str, peak: float, tmp_path: Path
) -> None:
    """`peak`: the largest resident size that a record of ours holds."""
    found, _ = needs.memory([made(attack, defense, dataset)], CPU, Cache(tmp_path))
    assert 0.7 < found / (peak - needs.LIBRARIES) < 1.6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_footprint_is_what_a_profiler_sees(precision: str) -> None:
    found = footprint(models.build("wrn16_1"), 10, 32, precision)
    network = models.build("wrn16_1").build(10, 32)
    network.precision = precision
    assert found.state == sum(values.nbytes for values in network.state_dict().values())
    assert found.embedding == 64 * 4
    assert found.largest == 16 * 32 * 32 * (4 if precision == "fp32" else 2)
    images = torch.zeros(16, 3, 32, 32)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        logits = network(images)
    held = sum(event.self_cpu_memory_usage for event in seen.events())
    assert logits.requires_grad
    assert 16 * found.saved == pytest.approx(held + images.nbytes, rel=0.1)


def test_disk_is_what_a_tiny_run_writes(tmp_path: Path) -> None:
    cells = [made(), made(defense="cbd(t1=1)"), made("sig(poisoning_rate=0.5)")]
    root, results = tmp_path / "cache", tmp_path / "results"
    cache, state = Cache(root), footprint(models.build("wrn16_1"), 10, 32, "fp32").state
    harness = Harness(cache, [], CPU)
    expected = cache_growth(cells, cache)
    for each in cells:
        write(results, harness.run(each))
    written = {kind: sum(stored.size for stored in contents(cache, kind)) for kind in KINDS}
    checkpoints = needs.COPIES * state
    assert written.pop("checkpoints") < checkpoints
    assert 1 < (expected - checkpoints) / sum(written.values()) < 1.2
    records = sum(path.stat().st_size for path in (results / "records").iterdir())
    assert records < needs.RECORD * len(cells)

    samples = 3 * (4 * needs.SAMPLES + 1) * 120
    left = cache_growth(cells, cache)
    # Of SIG's poisoned set, which is smaller than it may be, a part is still expected.
    assert 0 <= left - samples - checkpoints < 50_000
    sweep(cache, ["undefended"], max_size="0")
    assert cache_growth(cells, cache) == left + 2 * state


def test_the_cache_of_a_cifar10_cell_by_hand(tmp_path: Path) -> None:
    cells = [made(defense=d, dataset="cifar10") for d in ("none", "fp", "cbd")]
    image, state = 3 * 32 * 32 + 8, footprint(models.build("wrn16_1"), 10, 32, "fp32").state
    shared = 60_000 * image + (5_000 + 10_000) * image + 2 * 50_000 + state
    assert cache_growth(cells, Cache(tmp_path)) == shared + 3 * 17 * 50_000 + 8 * state
    embeddings = 3 * 4 * 2_000 * 64 * 4
    more = cache_growth(cells, Cache(tmp_path), curves=True) - cache_growth(cells, Cache(tmp_path))
    assert more == embeddings


def test_an_entry_of_other_data_is_taken_off_by_its_size_only(tmp_path: Path) -> None:
    cells = [made(dataset="cifar10")]
    before = cache_growth(cells, Cache(tmp_path))
    key = {"data": "of a toy", "attack": cells[0].specs["attack"], "source": "x", "seed": 0}
    Cache(tmp_path).fetch("poisoned", key, lambda: ({"images": torch.zeros(1000)}, {}))
    (stored,) = contents(Cache(tmp_path), "poisoned")
    assert before - cache_growth(cells, Cache(tmp_path)) == stored.size
    Cache(tmp_path).fetch("poisoned", {**key, "seed": 1}, lambda: ({"x": torch.zeros(1000)}, {}))
    assert before - cache_growth(cells, Cache(tmp_path)) == stored.size


def test_a_decoded_data_set_takes_less_memory(tmp_path: Path) -> None:
    cells = [made(dataset="cifar10")]
    before, _ = needs.memory(cells, GPU, Cache(tmp_path))
    key = {"name": "cifar10", "files": "x", "decoder": 1}
    Cache(tmp_path).fetch("datasets", key, lambda: ({"x": torch.zeros(1)}, {}))
    assert needs.memory(cells, GPU, Cache(tmp_path))[0] == before // needs.PACKED


def test_wider_batches_and_more_images_take_more(tmp_path: Path) -> None:
    def taken(*cells: Cell) -> int:
        return needs.memory(cells, GPU, Cache(tmp_path))[1]

    plain = made(batch_size=1024)
    assert taken(plain) < taken(made(batch_size=4096))
    assert taken(plain) < taken(made(defense="dbd(ssl_batch_size=4096)"))
    large = made(dataset="toy(train_images=100000, test_images=80)", batch_size=1024)
    assert taken(large) > taken(plain) + 3 * 90_000 * 3072
    assert taken(plain, large) == taken(large) + (120 + 80) * 3080


@pytest.mark.parametrize(
    ("name", "ram", "disk"),
    [("quick", 93.4e6, 9.66e6), ("table1-cifar10", 1012e6, 1282e6)],
)
def test_what_suites_are_said_to_take(name: str, ram: float, disk: float, tmp_path: Path) -> None:
    cells = grid.cells(suite(name), "fp32")
    found = estimate(cells, CPU, tmp_path / "results", tmp_path / "cache")
    assert [need.needed for need in found] == pytest.approx([ram, disk], rel=0.01)
    assert not list(tmp_path.iterdir())


def test_several_jobs_take_several_times_as_much(tmp_path: Path) -> None:
    cells, cache = [made(dataset="toy")], Cache(tmp_path)
    (one, _), (three, _) = (needs.memory(cells, CPU, cache, jobs) for jobs in (1, 3))
    assert three == 3 * (one + needs.LIBRARIES)
    assert needs.memory(cells, GPU, cache, 3)[0] == 3 * needs.LIBRARIES
    state = footprint(models.build("wrn16_1"), 10, 32, "fp32").state
    grown = [cache_growth(cells, cache, jobs=jobs) for jobs in (1, 3)]
    assert grown[1] - grown[0] == 2 * needs.COPIES * state
    found = estimate(cells, CPU, tmp_path, tmp_path, jobs=3)
    assert [need.needed for need in found] == [three, grown[1] + needs.RECORD]


def test_nothing_to_run_needs_nothing(tmp_path: Path) -> None:
    assert estimate([], CPU, tmp_path, tmp_path) == []


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=3_100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_is_refused_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [made(dataset="cifar10")]
    cache, results = tmp_path / "not" / "made", tmp_path / "results"
    with pytest.raises(InvalidInput) as refusal:
        check_needs(estimate(cells, CPU, results, cache))
    assert str(refusal.value) == (
        f"the run needs about 238.3 MB in {cache} and {results}, 3.1 MB are free there; "
        "BDBENCH_CACHE names another folder"
    )
    systems = {cache: 1, results: 2}
    monkeypatch.setattr(needs, "_file_system", systems.__getitem__)
    with pytest.raises(InvalidInput, match=rf"in {cache}, 3.1 MB are free there; BDBENCH_CACHE"):
        check_needs(estimate(cells, CPU, results, cache))
    small = [made(defense=f"cbd(t1={n})") for n in range(1, 200)]
    *_, written = estimate(small, CPU, results, cache)
    assert str(written) == f"about 4.0 MB in {results}, 3.1 MB are free there"
    assert not written.fits
    assert "--results" in written.remedy


def test_too_little_memory_is_refused_and_unknown_memory_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "free_memory", lambda device: 5_000_000)
    with pytest.raises(InvalidInput, match=r"the run needs about \d.* MB in memory, 5.0 MB are"):
        check_needs(estimate([made()], CPU, tmp_path, tmp_path))
    monkeypatch.setattr(needs, "free_memory", lambda device: None)
    check_needs(estimate([made()], CPU, tmp_path, tmp_path))
    assert str(estimate([made()], CPU, tmp_path, tmp_path)[0]).endswith(" in memory")


def test_an_accelerator_has_a_memory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6_000_000, 10_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3_000_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1_000_000)
    ram, video, _ = estimate([made(dataset="cifar10")], GPU, tmp_path, tmp_path)
    assert ram.needed == 4 * 60_000 * 3080
    assert ram.fits
    assert str(video).endswith(" in the memory of cuda:0, 8.0 MB are free there")
    assert not video.fits


def machine(root: Path, groups: dict[str, dict[str, str]], group: str = "/a/b") -> Path:
    """What Linux says of a machine with 8 GB to spare; the files of its control groups."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable:    8000000 kB\n")
    (root / "proc" / "self" / "cgroup").write_text(f"1:cpu:/x\n0::{group}\n")
    for name, files in groups.items():
        folder = root / "sys" / "fs" / "cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / f"memory.{file}").write_text(text)
    return root


LIMIT = {"max": "5000\n", "current": "3000\n", "stat": "anon 9\ninactive_file 500\nx 1\n"}
NONE = LIMIT | {"max": "max\n"}


@pytest.mark.parametrize(
    ("groups", "free"),
    [
        ({}, 8_192_000_000),
        ({"a/b": NONE, "a": NONE}, 8_192_000_000),
        ({"a/b": LIMIT}, 2500),
        ({"a/b": NONE, "a": LIMIT}, 2500),
        ({"": LIMIT, "a/b": LIMIT | {"max": "4000"}}, 1500),
        ({"a/b": LIMIT | {"max": "100"}}, 0),
        ({"another": LIMIT}, 8_192_000_000),
        ({"a/b": {"max": "5000"}}, 8_192_000_000),
    ],
)
def test_free_memory_is_the_machine_s_or_what_a_limit_leaves(
    groups: dict[str, dict[str, str]], free: int, tmp_path: Path
) -> None:
    assert free_memory(CPU, machine(tmp_path, groups)) == free


def test_free_memory_is_unknown_where_nothing_tells_it(tmp_path: Path) -> None:
    assert free_memory(CPU, tmp_path) is None
    assert needs.free_disk(tmp_path / "not" / "there") == pytest.approx(
        shutil.disk_usage(tmp_path).free, rel=0.05
    )
    assert Need(10**12, "in memory", None, "").fits

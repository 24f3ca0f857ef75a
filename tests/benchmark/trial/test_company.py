"""What a plugin leaves behind in a process with several cells changes nothing that others use."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module

import bdbench as bd
from bdbench.attacks import Poisoned, dirty_label
from bdbench.cells.cell import cell
from bdbench.datasets import Dataset, fingerprint
from bdbench.datasets.toy import Toy
from bdbench.defenses import Context
from bdbench.machine import numerics, system
from bdbench.models import Classifier, ImageSet, path_field
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.plugins.files import load_file
from bdbench.models.training.recipe import Recipe
from bdbench.records.claims import claimed
from bdbench.running.engines.own_nursery import AT_START
from bdbench.storage.cache import Cache
from bdbench.trial import company, keys, provenance
from bdbench.trial.harness import Harness

CPU = torch.device("cpu")
DATASET = "toy(train_images=60, test_images=40, image_size=16)"
RECIPE = "recipe(epochs=1, batch_size=32, learning_rate=0.02)"
HERE = {"torch": "2.9", "device": "cpu: mine", "threads": 1}


def run(**given: Any) -> bd.CellRecord:
    return bd.run_cell(**{"dataset": DATASET, "recipe": RECIPE, "device": "cpu", **given})


def network(record: bd.CellRecord) -> str:
    return str(record.provenance.network_sha256)


@pytest.fixture
def hooks() -> Iterator[Callable[[], None]]:
    """A deed that changes all layers of this process; it is undone after the test."""
    before = dict(module._global_forward_hooks)

    def hook() -> None:
        nn.modules.module.register_module_forward_hook(lambda layer, given, out: 1.1 * out)

    yield hook
    module._global_forward_hooks.clear()
    module._global_forward_hooks.update(before)


def leave_settings() -> None:
    torch.set_num_threads(3)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_default_device("meta")
    torch.set_autocast_enabled("cpu", True)
    torch.autograd.set_detect_anomaly(True)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    os.chdir("/")
    os.environ["BDBENCH_CACHE"] = "/nowhere"


DEEDS: dict[str, Callable[[], None]] = {"": lambda: None, "settings": leave_settings}


@dataclass(frozen=True)
class Leaving(bd.Defense):
    """deed: of `DEEDS`"""

    deed: str = ""
    undefended = 1

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        found = context.undefended()
        DEEDS[self.deed]()
        return found


@dataclass(frozen=True)
class LeavingAttack(bd.Attack):
    """deed: of `DEEDS`"""

    deed: str = ""

    def trigger(self, images: Tensor) -> Tensor:
        return 255 - images

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        made = dirty_label(self, clean, rng)
        DEEDS[self.deed]()
        return made


def test_a_cell_leaves_the_settings_of_its_process_as_they_were() -> None:
    """Or else the next cell of a notebook computes other numbers, and the record has other threads
    and paths than its run began with."""
    before, here = numerics.state(), Path.cwd()
    alone = run(attack="badnets")
    left = run(attack="badnets", defense=Leaving("settings"))
    assert (torch.get_num_threads(), Path.cwd(), numerics.state()) == (1, here, before)
    assert left.provenance.threads == 1
    assert network(left) == network(alone)
    assert network(run(attack="blend")) == network(run(attack="blend", epochs=1))


def test_what_a_defense_leaves_does_not_reach_the_evaluation() -> None:
    """Nor the training after it, which needs gradients."""
    alone = run(attack="badnets", reactivate=True)
    left = run(attack="badnets", defense=Leaving("settings"), reactivate=True)
    for metric in ("clean_accuracy", "reactivated_success_rate"):
        assert left.count(metric) == alone.count(metric)


def test_what_an_attack_leaves_does_not_reach_the_defense() -> None:
    records = [run(attack=LeavingAttack(deed=deed), defense="clp") for deed in ("", "settings")]
    assert len({*map(network, records)}) == 1


@pytest.mark.parametrize("plugin", ["attack", "defense"])
def test_what_is_made_after_a_plugin_ran_is_not_found_by_others(
    plugin: str, hooks: Callable[[], None], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DEEDS, "hook", hooks)
    made: Mapping[str, Any] = {
        "attack": {"attack": LeavingAttack(deed="hook")},
        "defense": {"attack": "badnets", "defense": Leaving("hook")},
    }[plugin]
    run(**made)
    beside = run(attack="blend")
    again = run(attack="blend", defense="clp")
    assert again.passes == beside.passes, "the same company shares what it makes"
    module._global_forward_hooks.clear()
    clean = run(attack="blend")  # the process still has that company
    assert network(clean) == network(beside), "it found the network of the same company"
    monkeypatch.setattr(company, "_ran", set())
    true = run(attack="blend")
    assert network(true) != network(beside)
    monkeypatch.setenv("BDBENCH_CACHE", str(cache_folder / "fresh"))
    assert network(run(attack="blend")) == network(true)


def test_what_others_made_is_used_beside_any_code(
    hooks: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a notebook whose class is edited does not train the undefended network again."""
    monkeypatch.setitem(DEEDS, "hook", hooks)
    first = run(attack="badnets")
    run(attack="badnets", defense=Leaving("hook"))
    assert network(run(attack="badnets")) == network(first)


def test_the_company_is_code_that_the_key_does_not_name(
    tmp_path: Path, unregistered: None, hooks: Callable[[], None]
) -> None:
    made = cell(DATASET, "wrn16_1", "badnets", Leaving(), Recipe(), 0)
    company.enter(made, "dataset", "model", "attack")
    assert company.beside(made, ()) == {}, "built-in plugins leave nothing behind"
    company.enter(made, "defense")
    (seen,) = company.beside(made, keys.TRAINED)["beside"]
    assert company.beside(made, ["defense"]) == {}
    (tmp_path / "silent.py").write_text("x = 1\n")
    with pytest.warns(UserWarning, match="registers nothing, so no cell imports it"):
        load_file(tmp_path / "silent.py")
    found = company.beside(made, keys.TRAINED)["beside"]
    assert len(found) == 2
    assert seen in found


@pytest.mark.parametrize("ending", ["fails", "ends well"])
def test_images_that_an_attack_overwrote_are_loaded_again(ending: str, cache_folder: Path) -> None:
    @dataclass(frozen=True)
    class Overwriting(bd.Attack):
        """Writes in the images that it gets."""

        def trigger(self, images: Tensor) -> Tensor:
            return 255 - images

        def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
            clean.images.zero_()
            if ending == "fails":
                raise RuntimeError("this attack is broken")
            return dirty_label(self, clean, rng)

    harness = Harness(Cache(cache_folder), [], CPU)
    recipe = replace(Recipe(), epochs=1, batch_size=32)
    bad = cell(DATASET, "wrn16_1", Overwriting(), "none", recipe, 0)
    good = cell(DATASET, "wrn16_1", "badnets", "none", recipe, 0)
    assert harness.run(bad).status == "failed"
    data = harness.dataset(good.dataset)
    assert data.sha256 == fingerprint(data.train, data.test)


def test_a_setting_of_torch_is_in_the_key_of_what_is_trained() -> None:
    usual = keys.machine(CPU, 1)
    assert "numerics" not in usual
    setting = numerics.SETTINGS["onednn"]
    try:
        setting.write(False)
        other = keys.machine(CPU, 1)
    finally:
        setting.write(True)
    assert other["numerics"] == {"onednn": False}
    assert keys.anywhere(other) == keys.anywhere(usual) == {}
    before = torch.backends.cudnn.deterministic
    try:
        torch.backends.cudnn.deterministic = True
        assert keys.machine(CPU, 1) == usual, "a CPU does not obey it"
        found = numerics.unusual(torch.device("cuda"))
    finally:
        torch.backends.cudnn.deterministic = before
    assert found == {"cudnn deterministic": True}


@pytest.mark.parametrize(
    ("name", "on_cpu"),
    [
        *(("ATEN_CPU_CAPABILITY", True), ("ONEDNN_MAX_CPU_ISA", True), ("DNNL_MAX_CPU_ISA", True)),
        *(("MKL_CBWR", True), ("MKL_ENABLE_INSTRUCTIONS", True), ("NVIDIA_TF32_OVERRIDE", False)),
        *(("MKL_NUM_THREADS", False), ("HOME", False)),
    ],
)
def test_a_variable_that_chooses_kernels_is_in_the_key_of_what_is_trained(
    name: str, on_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, gpu = keys.machine(CPU, 1), torch.device("cuda")
    monkeypatch.setenv(name, "1")
    assert keys.machine(CPU, 1) == {**usual, **({"numerics": {name: "1"}} if on_cpu else {})}
    on_gpu = on_cpu or name.startswith("NVIDIA")
    assert numerics.unusual(gpu).get(name) == ("1" if on_gpu else None)
    assert name.startswith(AT_START) >= on_gpu, "libraries read it when they are loaded"


def test_a_setting_that_torch_cannot_tell_is_unusual(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> bool:
        raise RuntimeError("mix of the legacy and new APIs")

    broken = replace(numerics.SETTINGS["cudnn tf32"], read=refuse)
    monkeypatch.setattr(numerics, "SETTINGS", {**numerics.SETTINGS, "cudnn tf32": broken})
    assert numerics.unusual(torch.device("cuda")) == {"cudnn tf32": None}
    monkeypatch.setattr(provenance, "SETTINGS", numerics.SETTINGS)
    made = cell(DATASET, "wrn16_1", "badnets", "none", Recipe(), 0)
    assert provenance.of(made, torch.device("cuda"), None)["tf32"] is True
    assert broken.write not in numerics.state(numerics.SETTINGS)


@dataclass(frozen=True)
class FromFile(bd.Attack):
    """place: of the pattern"""

    place: str = path_field()

    def trigger(self, images: Tensor) -> Tensor:
        return images ^ int(Path(self.place).read_text())

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        return dirty_label(self, clean, rng)


def test_the_content_of_a_file_that_a_setting_names_identifies_a_cell(tmp_path: Path) -> None:
    def described(folder: str, text: str) -> tuple[str, dict[str, Any]]:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "pattern.txt").write_text(text)
        attack = FromFile(place=str(tmp_path / folder / "pattern.txt"))
        made = cell(DATASET, "wrn16_1", attack, "none", Recipe(), 0)
        return made.key, keys.attack_key(made, HERE)

    first, moved, edited = described("a", "1"), described("b", "1"), described("a", "2")
    assert first == moved
    assert all(one != other for one, other in zip(first, edited, strict=True))
    before = run(attack=FromFile(place=str(tmp_path / "b/pattern.txt")))
    (tmp_path / "b/pattern.txt").write_text("255")
    after = run(attack=FromFile(place=str(tmp_path / "b/pattern.txt")))
    assert network(before) != network(after)


@dataclass(frozen=True)
class ToyWithFile(Toy):
    """place: of a file or folder"""

    place: str = path_field()


@pytest.mark.parametrize("axis", ["attack", "dataset"])
@pytest.mark.parametrize("deep", ["", "in/"])
def test_the_files_below_a_folder_that_a_setting_names_identify_a_cell(
    axis: str, deep: str, tmp_path: Path
) -> None:
    def key(base: str, **texts: str) -> str:
        for name, text in texts.items():
            (tmp_path / base / "all" / deep).mkdir(parents=True, exist_ok=True)
            (tmp_path / base / "all" / deep / name).write_text(text)
        place = str(tmp_path / base / "all")
        given: dict[str, Any] = {
            "dataset": ToyWithFile(train_images=60, test_images=40, image_size=16, place=place),
            "attack": FromFile(place=place),
        }
        axes = {"dataset": DATASET, "attack": "badnets", axis: given[axis]}
        return cell(axes["dataset"], "wrn16_1", axes["attack"], "none", Recipe(), 0).key

    first, moved = key("a", one="1", two="2"), key("b", one="1", two="2")
    assert first == moved
    assert len({first, key("c", one="1", two="3"), key("d", one="1", three="2")}) == 3
    assert key("a", three="") != first


@dataclass(frozen=True)
class Misnamed(Toy):
    """stated: the hash that it says its images have"""

    stated: str = ""

    def load(self, roots: Any, cache: Cache) -> Dataset:
        return replace(super().load(roots, cache), sha256=self.stated)


def test_a_data_set_with_a_false_hash_is_refused() -> None:
    sizes = {"train_images": 60, "test_images": 40, "image_size": 16}
    with pytest.raises(InvalidInput, match=r"sha256 of data set .* is not that of its images"):
        run(dataset=Misnamed(**sizes, stated="0" * 64))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Other(Toy):
    """change: what its images have in place of what it declares"""

    change: str = ""

    def load(self, roots: Any, cache: Cache) -> Dataset:
        found = super().load(roots, cache)
        train, test = found.train, found.test
        if self.change == "size":
            test = ImageSet(test.images[:, :, 1:, 1:], test.labels, 10)
        elif self.change == "classes":
            train = ImageSet(train.images, train.labels, 11)
        elif self.change == "images":
            test = test[torch.arange(0)]
        elif self.change == "type":
            return found.train  # type: ignore[return-value]
        names = found.class_names[: 9 if self.change == "names" else 10]
        return Dataset(train, test, names, fingerprint(train, test))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("size", "declares 10 classes of 16 x 16 pixels, and its test set has 10 classes of 15 x"),
        ("classes", "and its training set has 11 classes of 16 x 16 pixels: change num_classes"),
        ("images", "has no test images"),
        ("names", "has 9 class names for 10 classes"),
        ("type", "must return a Dataset, got ImageSet"),
    ],
)
def test_a_data_set_whose_images_are_not_as_it_declares_is_refused(change: str, said: str) -> None:
    source = Other(train_images=60, test_images=40, image_size=16, change=change)
    with pytest.raises(InvalidInput, match=said):
        run(dataset=source)
    source = replace(source, change="")
    assert run(dataset=source).status == "ok"


def test_the_same_images_with_more_classes_are_another_data_set(cache_folder: Path) -> None:
    harness = Harness(Cache(cache_folder), [], CPU)
    ws = harness._workspace(
        cell(DATASET, "wrn16_1", "badnets", "none", Recipe(), 0), harness_watch()
    )
    data = ws.dataset
    train = ImageSet(data.train.images, data.train.labels, data.train.num_classes + 1)
    more = replace(ws, dataset=replace(data, train=train))
    assert fingerprint(train, data.test) == data.sha256
    assert ws.key({}) != more.key({})


def harness_watch() -> Any:
    from bdbench.machine.clock import Stopwatch

    return Stopwatch(CPU)


def test_a_cell_that_another_run_works_on_is_refused(tmp_path: Path) -> None:
    made = run(attack="badnets", results=tmp_path)
    path = tmp_path / "records" / f"{made.key}.json"
    with claimed(tmp_path, made.key) as mine:
        assert mine
        assert run(attack="badnets", results=tmp_path).key == made.key, "it has a record"
        path.unlink()
        with pytest.raises(InvalidInput, match=f"another run is working on cell {made.key}"):
            run(attack="badnets", results=tmp_path)
    assert not path.exists()
    run(attack="badnets", results=tmp_path)
    assert json.loads(path.read_text())["key"] == made.key


def test_the_commit_is_that_of_the_code_that_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(system, "commit_of", lambda file: asked.append(file) or "abc")
    system.commit.cache_clear()
    try:
        provenance.settle()
        assert len(asked) == 1
        system.commit()
        assert len(asked) == 1
    finally:
        system.commit.cache_clear()


def test_a_training_that_began_beside_other_code_is_not_resumed_without_it(
    cache_folder: Path, no_company: None, hooks: Callable[[], None]
) -> None:
    """What that code left behind may have changed it."""
    harness = Harness(Cache(cache_folder), [], torch.device("cpu"))
    plain = cell(DATASET, "wrn16_1", "badnets", "cbd", Recipe(), 0)
    before = harness.checkpoints(plain)
    company.enter(cell(DATASET, "wrn16_1", "badnets", Leaving(), Recipe(), 0), "defense")
    assert not {*before} & {*harness.checkpoints(plain)}

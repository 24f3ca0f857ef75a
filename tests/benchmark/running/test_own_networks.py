"""Networks that a user brings, and those that a run keeps and exports."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import torchvision
from builders import FAILED
from commands import refused
from PIL import Image
from test_docs import ALONE
from torch import Tensor, nn

import bdbench as bd
from bdbench.cells.cell import cell_of_record
from bdbench.cli import main
from bdbench.datasets import parquet
from bdbench.models.networks.given import NAME, given
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.training.augment import to_float
from bdbench.models.training.loop import logits
from bdbench.records.files import network_of, read, read_all
from bdbench.records.rerun import command
from bdbench.storage import networks
from bdbench.storage.networks import Stored, weights_sha256
from bdbench.tables.verify import verify
from bdbench.trial.networks import fitted, given_model, saved
from bdbench.trial.networks import network as stored_network
from bdbench.trial.program import program

TOY = "toy(image_size=16, train_images=100, test_images=50)"
ATTACK = "badnets(poisoning_rate=0.2)"
TINY: dict[str, Any] = {"dataset": TOY, "attack": ATTACK, "epochs": 1, "device": "cpu"}
ON_TOY = ["--dataset", TOY, "--attack", ATTACK, "--epochs", "1", "--device", "cpu", "--in-process"]
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, bd.CellRecord]]:
    """A folder of results with a cell whose network was saved; the cache stays for the module."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BDBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield folder, bd.run_cell(**TINY, precision="fp32", results=folder, save=True)


@pytest.fixture
def network(kept: tuple[Path, bd.CellRecord]) -> Path:
    folder, record = kept
    return network_of(folder, record.key)


@pytest.fixture
def own(network: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a state dict as users have them: without metadata, changed as is asked."""

    def write(change: Callable[[Weights], Weights] = dict, name: str = "own.safetensors") -> Path:
        weights = dict(networks.read(network).weights)
        whole = {key: each.contiguous() for key, each in change(weights).items()}
        safetensors.torch.save_file(whole, tmp_path / name)
        return tmp_path / name

    return write


def evaluate(file: Path, *arguments: str) -> int:
    return main(["evaluate", str(file), *ON_TOY, *arguments])


def records_of(folder: Path) -> dict[str, bd.Record]:
    """By defense."""
    records, damaged = read_all(folder)
    assert not damaged
    return {record.labels.defense: record for record in records}


# The hash and the file.


def test_the_hash_is_of_names_types_shapes_and_values() -> None:
    one = {"a": torch.arange(6.0), "b": torch.zeros((), dtype=torch.int64)}
    others = [
        {"a": one["a"], "c": one["b"]},
        {"a": one["a"].view(2, 3), "b": one["b"]},
        {"a": one["a"].double(), "b": one["b"]},
        {"a": one["a"] + 1, "b": one["b"]},
        {"a": one["a"]},
    ]
    assert len({weights_sha256(each) for each in [one, *others]}) == 6
    assert weights_sha256(dict(reversed(one.items()))) == weights_sha256(one)
    strided = torch.arange(12.0).view(6, 2)[:, 0]
    assert weights_sha256({"a": strided}) == weights_sha256({"a": strided.clone()})


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    weights = {
        "one": shared,
        "same memory": shared[:3],
        "half": torch.ones(2, dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "turned": torch.arange(6.0).view(2, 3).T,
    }
    networks.write(tmp_path / "x.safetensors", weights, {"key": "0", "model": "wrn16_1"})
    found = networks.read(tmp_path / "x.safetensors")
    assert found.facts["model"] == "wrn16_1"
    assert found.facts["sha256"] == weights_sha256(weights) == weights_sha256(found.weights)
    for name, values in weights.items():
        assert torch.equal(found.weights[name], values)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_flipped_byte_of_the_weights_is_noticed(network: Path, tmp_path: Path) -> None:
    content = network.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for place in range(start, len(content), (len(content) - start) // 20):
        damaged = bytearray(content)
        damaged[place] ^= 1
        (tmp_path / "x.safetensors").write_bytes(damaged)
        with pytest.raises(bd.InvalidInput, match="is corrupt: its weights do not match"):
            networks.read(tmp_path / "x.safetensors")


# What a run keeps.


def test_a_saved_network_is_the_one_of_its_record(kept: tuple[Path, bd.CellRecord]) -> None:
    folder, record = kept
    results = bd.load(folder)
    found = results.network(record.key[:6])
    assert not found.training
    state = found.state_dict()
    assert weights_sha256(state) == record.provenance.network_sha256
    assert weights_sha256(state) == weights_sha256(record.network.state_dict())
    for each in results:
        assert isinstance(each, bd.CellRecord)
        assert weights_sha256(each.network.state_dict()) == weights_sha256(state)
    images = record.poisoned.train.images
    assert torch.equal(logits(found, images), logits(record.network, images))


def test_a_network_that_is_missing_or_another_is_one_line(
    kept: tuple[Path, bd.CellRecord], tmp_path: Path
) -> None:
    folder, record = kept
    shutil.copytree(folder, tmp_path / "r")
    results, file = bd.load(tmp_path / "r"), network_of(tmp_path / "r", record.key)
    other = {name: values + 1 for name, values in networks.read(file).weights.items()}
    networks.write(file, other, networks.read(file).facts)
    with pytest.raises(bd.InvalidInput, match="is not the network of record"):
        results.network(record.key)
    failed = replace(record, status="failed", metrics=None, error=FAILED)
    assert saved(tmp_path / "r", failed) is None
    file.unlink()
    for ask in (lambda: results.network(record.key), lambda: results.records[0].network):  # type: ignore[attr-defined]
        with pytest.raises(bd.InvalidInput, match="network"):
            ask()
    with pytest.raises(bd.InvalidInput, match="no record '0000'"):
        results.network("0000")


def test_save_runs_a_cell_again_that_has_a_record_and_no_network(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", *ON_TOY, "--defense", "none", "--defense", "clp", "--precision", "fp32"]
    assert main(arguments) == 0
    assert not (own_folder / "results/quick/networks").exists()
    before = records_of(own_folder / "results/quick")
    capsys.readouterr()
    assert main([*arguments, "--save"]) == 0
    told = capsys.readouterr().out
    assert "2 records have no saved network, so --save runs the cells again" in told
    after = records_of(own_folder / "results/quick")
    for defense, record in after.items():
        saved = networks.read(network_of(own_folder / "results/quick", record.key))
        assert saved.facts["sha256"] == record.provenance.network_sha256
        assert before[defense].provenance == record.provenance
        assert before[defense].metrics == record.metrics
    assert main([*arguments, "--save"]) == 0
    assert "all 2 cells have records" in capsys.readouterr().out


def test_a_run_that_cannot_keep_a_network_does_not_begin(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = own_folder / "results/quick"
    results.mkdir(parents=True)
    (results / "networks").write_text("in the way")
    arguments = ["run", *ON_TOY, "--defense", "none", "--precision", "fp32", "--save"]
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("bdbench: cannot write in results/quick/networks: ")
    assert not list((results / "records").glob("*.json"))
    assert (results / "networks").read_text() == "in the way"


# A network of one's own.


def test_a_network_is_evaluated_as_the_run_that_made_it_did(
    kept: tuple[Path, bd.CellRecord],
    network: Path,
    own_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, record = kept
    assert evaluate(network, "--defense", "clp") == 0
    found = records_of(own_folder / "results/evaluate")
    assert set(found) == {"none", "clp"}
    assert found["none"].metrics == record.metrics
    assert found["none"].provenance.network_sha256 == record.provenance.network_sha256
    assert found["none"].passes.as_dict() == {"forward": 0.0, "backward": 0.0}
    defended = bd.run_cell(**TINY, precision="fp32", defense="clp")
    assert found["clp"].metrics == defended.metrics
    assert found["clp"].provenance.network_sha256 == defended.provenance.network_sha256
    digits = record.provenance.network_sha256[:16]
    for each in found.values():
        assert each.labels.model == f"weights(sha256='{digits}')"
        assert each.provenance.given.as_dict() == {
            "file": network.name,
            "sha256": record.provenance.network_sha256,
        }
    told = capsys.readouterr().out
    heads = told[told.index("| defense") :].splitlines()
    assert "weights(sha256=" in told
    assert "defenses: 1 epoch" in told
    assert [part.strip() for part in heads[2].split("|")[4:8]] == ["CA", "ASR", "floor", "R-Acc"]
    assert heads[3].split("|")[-2].strip() == "-"


@pytest.mark.parametrize(
    "defense", ["ft(updates=3)", "mcr(ends='single', updates=3, tuning_updates=3)"]
)
def test_a_defense_starts_from_the_network(
    defense: str, kept: tuple[Path, bd.CellRecord], network: Path
) -> None:
    """The same that the run which trained the network makes of it."""
    usual = bd.run_cell(**TINY, precision="fp32", defense=defense)
    found = bd.evaluate(network, defense=defense, **TINY)
    assert found.provenance.network_sha256 == usual.provenance.network_sha256
    assert found.provenance.network_sha256 != kept[1].provenance.network_sha256
    assert found.metrics == usual.metrics


def test_the_key_is_of_the_weights_and_not_of_the_file(
    network: Path, own: Callable[..., Path], own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(network) == 0
    before = {path.name for path in (own_folder / "results/evaluate/records").glob("*.json")}
    assert len(before) == 1
    said = capsys.readouterr().out
    assert f"\n- the network is that in {network.name}\n" in said
    changes: list[Callable[[Weights], Weights]] = [
        dict,
        lambda w: {f"module.{name}": values for name, values in w.items()},
        lambda w: {f"net.0._orig_mod.{name}": values for name, values in w.items()},
        lambda w: {name: values for name, values in w.items() if name not in ("mean", "deviation")},
    ]
    for change in changes:
        capsys.readouterr()
        assert evaluate(own(change), "--model", "wrn16_1") == 0
        assert "the only cell has its record" in capsys.readouterr().out
    assert {path.name for path in (own_folder / "results/evaluate/records").iterdir()} == before
    assert evaluate(own(lambda w: {**w, "head.bias": w["head.bias"] + 1}), "--model=wrn16_1") == 0
    assert len(records_of(own_folder / "results/evaluate")) == 1
    assert len(list((own_folder / "results/evaluate/records").glob("*.json"))) == 2


def test_half_precision_is_used_as_float32_and_said(own: Callable[..., Path]) -> None:
    halved = own(lambda w: {n: v.half() if v.is_floating_point() else v for n, v in w.items()})
    with pytest.warns(UserWarning, match="holds float16 weights, which are used as float32"):
        assert evaluate(halved, "--model", "wrn16_1", "--dry-run") == 0


def test_a_module_a_state_dict_and_a_file_are_the_same(
    kept: tuple[Path, bd.CellRecord], network: Path
) -> None:
    _, record = kept
    found = [
        bd.evaluate(weights, model="wrn16_1", **TINY)
        for weights in (record.network, record.network.state_dict(), str(network))
    ]
    assert len({each.key for each in found}) == 1
    assert [each.metrics for each in found] == [record.metrics] * 3
    assert [each.provenance.given.file for each in found] == ["", "", network.name]
    assert torch.equal(found[0].network.head.weight, record.network.head.weight)


def test_normalisation_by_channel_is_a_part_of_the_model() -> None:
    mean, deviation = (0.5, 0.25, 0.125), (0.25, 0.5, 1.0)
    plain = models.build("wrn16_1").build(10, 16).eval()
    scaled = models.build(f"wrn16_1(mean={mean}, deviation={deviation})").build(10, 16).eval()
    assert scaled.mean.shape == (3, 1, 1)
    weights = {n: v for n, v in plain.state_dict().items() if n not in ("mean", "deviation")}
    scaled.load_state_dict(weights, strict=False)
    images = torch.rand(4, 3, 16, 16)
    changed = images.clone()
    for channel in range(3):
        changed[:, channel] = (images[:, channel] - mean[channel]) / deviation[channel]
    assert torch.allclose(scaled(images), plain(changed), atol=1e-5)
    for wrong in ("mean=(0.5, 0.5)", "deviation=(0.5, 0.5, 0.0)", "mean=(0.5, 0.5, 1e400)"):
        with pytest.raises(bd.InvalidInput):
            models.build(f"wrn16_1({wrong})").build(10, 16)
    # A file without the two takes them from the spec, and one with others is refused.
    source = bd.dataset("toy", image_size=16)
    spec = f"wrn16_1(mean={mean}, deviation={deviation})"
    found = fitted(Stored(weights), models.build(spec), source)
    assert torch.equal(found["mean"], scaled.mean)
    with pytest.raises(bd.InvalidInput, match=r"has a mean of 0, the model \(0.5, 0.25, 0.125\): "):
        fitted(Stored(plain.state_dict()), models.build(spec), source)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1, 1), (1, 3, 1, 1)])
def test_a_normalisation_is_the_same_in_any_shape(shape: tuple[int, ...]) -> None:
    for spec in ("wrn16_1(mean=0.5)", "wrn16_1(mean=(0.5, 0.5, 0.5))"):
        model = models.build(spec)
        like = model.build(10, 16).state_dict()
        weights = {**like, "mean": torch.full(shape, 0.5)}
        found = fitted(Stored(weights), model, bd.dataset("toy", image_size=16))
        assert torch.equal(found["mean"], like["mean"])


def test_what_a_stored_network_may_lack_is_that_of_a_new_one() -> None:
    model = models.build("wrn16_1").build(10, 16).eval()
    facts = {"model": "wrn16_1", "classes": "10", "image_size": "16"}
    whole = model.state_dict()
    optional = ["mean", "deviation", *(name for name in whole if name.endswith("_tracked"))]
    weights = {name: values for name, values in whole.items() if name not in optional}
    made = stored_network(Stored(weights, facts))
    assert made.state_dict().keys() == model.state_dict().keys()
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(made(images), model(images))
    means = {name: v for name, v in weights.items() if not name.endswith("running_mean")}
    with pytest.raises(bd.InvalidInput, match=r"it lacks .*running_mean"):
        stored_network(Stored(means, facts))


def test_the_keys_of_trained_cells_do_not_know_of_given_networks() -> None:
    for name in ("wrn16_1", "resnet18"):
        assert models.canonical(name) == f"{name}(mean=0.0, deviation=1.0)"
        assert given(models.build(name)) is None
    whole = models.canonical("weights(sha256='0123456789abcdef')")
    expected = f"{NAME}(model='wrn16_1(mean=0.0, deviation=1.0)', sha256='0123456789abcdef')"
    assert whole == expected
    assert given(models.build(whole)) == "0123456789abcdef"


def test_the_nearest_model_is_named() -> None:
    weights = models.build("preact_resnet18").build(10, 16).state_dict()
    with pytest.raises(bd.InvalidInput) as refusal:
        given_model(Stored(weights), "resnet18", bd.dataset("toy", image_size=16))
    assert str(refusal.value).endswith("; it fits --model preact_resnet18")


def _with(name: str, values: Callable[[Tensor], Tensor]) -> Callable[[Weights], Weights]:
    return lambda w: {**w, name: values(w[name])}


WRONG_WEIGHTS: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "missing": (lambda w: {"head.bias": w["head.bias"]}, "it lacks stem.weight, groups.0"),
    "unexpected": (lambda w: {**w, "extra": torch.ones(1)}, "it has unexpected extra"),
    "classes": (
        lambda w: {**w, "head.weight": torch.zeros(43, 64), "head.bias": torch.zeros(43)},
        "its head.weight has shape (43, 64) instead of (10, 64) for the 10 classes of toy",
    ),
    "nan": (_with("head.bias", lambda v: v * torch.nan), "nan or infinite, in head.bias"),
    "infinite": (_with("stem.weight", lambda v: v / 0), "nan or infinite, in stem.weight"),
    "quantised": (
        _with("stem.weight", lambda v: v.to(torch.int8)),
        "its stem.weight is torch.int8 instead of torch.float32",
    ),
    "normalised": (
        lambda w: {**w, "mean": torch.tensor(0.5)},
        'has a mean of 0.5, the model 0: choose the model "wrn16_1(mean=0.5, deviation=1)"',
    ),
    "statistics": (
        lambda w: {name: v for name, v in w.items() if not name.endswith(".running_mean")},
        "it lacks groups.0.0.norm1.running_mean, ",
    ),
    "nothing": (lambda w: {}, "it lacks stem.weight"),
}


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_weights_that_do_not_fit_are_refused_in_one_line(
    case: str, own: Callable[..., Path], own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, complaint = WRONG_WEIGHTS[case]
    file = own(change)
    content = file.read_bytes()
    assert complaint in refused(capsys, "evaluate", str(file), *ON_TOY, "--model", "wrn16_1")
    assert file.read_bytes() == content
    assert not (own_folder / "results").exists()


def _pickled(file: io.BytesIO, legacy: bool) -> None:
    torch.save({"a": torch.ones(1)}, file, _use_new_zipfile_serialization=not legacy)


def _file(name: str, whole: bytes) -> bytes:
    """What is in a file that is no network."""
    if name in ("pickle", "old pickle"):
        content = io.BytesIO()
        _pickled(content, legacy=name == "old pickle")
        return content.getvalue()
    return {
        "empty": b"",
        "short": whole[:4],
        "truncated": whole[:-100],
        "without weights": whole[: 8 + int.from_bytes(whole[:8], "little")],
        "text": b"not a network, but long enough to be read as one",
        "huge header": b"\xff" * 64,
    }[name]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("empty", "is empty: save the state dict of a network as safetensors"),
        ("short", "is not a complete safetensors file"),
        ("truncated", "is not a complete safetensors file"),
        ("without weights", "is not a complete safetensors file"),
        ("text", "is not a complete safetensors file"),
        ("huge header", "is not a complete safetensors file"),
        ("pickle", "is a pickle, which may run code and is not opened; convert it with python -c"),
        ("old pickle", "is a pickle"),
    ],
)
def test_a_file_that_is_no_network_is_refused_in_one_line(
    name: str,
    complaint: str,
    network: Path,
    own_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = own_folder / "x.safetensors"
    file.write_bytes(_file(name, network.read_bytes()))
    assert complaint in refused(capsys, "evaluate", "x.safetensors", *ON_TOY)
    assert not (own_folder / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["evaluate"], "Missing argument 'WEIGHTS'"),
        (["evaluate", "FILE"], "Missing option '--dataset'"),
        (["evaluate", "FILE", "--dataset", TOY], "Missing option '--attack'"),
        (["evaluate", "absent.safetensors", *ON_TOY], "cannot read absent.safetensors: No such"),
        (["evaluate", ".", *ON_TOY], ". is not a file of weights"),
        (["evaluate", "FILE", *ON_TOY, "--model", "wrn61"], "unknown model 'wrn61'; did you mean"),
        (["evaluate", "FILE", *ON_TOY, "--model", "resnet18"], "it fits --model wrn16_1"),
        (["evaluate", "FILE", *ON_TOY, "--attack", "badnet"], "did you mean 'badnets'?"),
        (["evaluate", "FILE", *ON_TOY, "--defense", "clb"], "did you mean 'clp'?"),
        (["evaluate", "FILE", *ON_TOY, "--defense", "abl"], "abl trains a network from scratch"),
        (["evaluate", "FILE", *ON_TOY, "--defense", "cbd"], "cbd trains a network from scratch"),
        (["evaluate", "FILE", *ON_TOY, "--defense", "dbd"], "dbd trains a network from scratch"),
        (["evaluate", "FILE", *ON_TOY, "--defense", "mcr"], "mcr starts from 2 networks, but one"),
        (["evaluate", "FILE", *ON_TOY, "--dataset", "tyo"], "did you mean 'toy'?"),
        (["evaluate", "FILE", *ON_TOY, "--seeds", "0"], "seeds must be at least 1"),
        (["evaluate", "FILE", *ON_TOY, "--jobs", "2"], "leave out --jobs"),
        (["run", *ON_TOY, "--model", "weights"], "use `bdbench evaluate FILE`"),
        (["run", "--engine", "ray", "--save"], "--save is for --engine local and slurm"),
        (["export"], "name the KEY of a cell, or a format for a table of all"),
        (["export", "--format", "cvs"], "unknown format 'cvs'; did you mean 'csv'?"),
        (["export", "--format", "csv"], "no records in results/quick/records"),
        (["export", "--format", "csv", "--force"], "--force is for the export of a single cell"),
        (["export", "KEY"], "name a folder for the cell with --out"),
        (["export", "KEY", "--out", "x"], "x is not a folder: choose another --out"),
        (["export", "KEY", "--out", "y"], "mine.txt was not written by `bdbench export`"),
        (["export", "KEY", "--out", "new", "--format", "csv"], "--format is for a table of all"),
        (["export", "0123", "--out", "new"], "no record '0123'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_answered_in_one_line(
    arguments: list[str],
    complaint: str,
    kept: tuple[Path, bd.CellRecord],
    network: Path,
    own_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (own_folder / "x").write_text("a file")
    (own_folder / "y").mkdir()
    (own_folder / "y/mine.txt").write_text("mine")
    shutil.copy(network, own_folder / "FILE")
    folder, record = kept
    if "KEY" in arguments:
        arguments = [record.key if word == "KEY" else word for word in arguments]
        arguments += ["--results", str(folder)]
    before = {path: path.stat().st_mtime_ns for path in own_folder.rglob("*")}
    assert complaint in refused(capsys, *arguments)
    assert {path: path.stat().st_mtime_ns for path in own_folder.rglob("*")} == before


def test_a_given_network_cannot_be_trained_from_python() -> None:
    with pytest.raises(bd.InvalidInput, match="is a network in a file"):
        bd.run_cell(model="weights", **TINY)
    with pytest.raises(bd.InvalidInput, match="a state dict of tensors by name"):
        bd.evaluate({"a": 1}, **TINY)  # type: ignore[dict-item]
    with pytest.raises(bd.InvalidInput, match="save=True needs a folder"):
        bd.run_cell(save=True, **TINY)


def test_records_of_a_given_network_go_wherever_records_go(
    kept: tuple[Path, bd.CellRecord],
    network: Path,
    own_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _ = kept
    assert evaluate(network, "--defense", "clp", "--save") == 0
    results = own_folder / "results/evaluate"
    found = records_of(results)
    assert bd.load(results).network(found["clp"].key).head.out_features == 10
    again = command(found["clp"], Path("both/again"))
    assert again.startswith(f"bdbench evaluate {network.name} --dataset 'toy(")
    assert "--model 'wrn16_1(mean=0.0, deviation=1.0)'" in again
    assert main(["merge", str(results), str(folder), "--results", "both"]) == 0
    both, _ = read_all(own_folder / "both")
    assert len(both) == 3
    assert main(["table", "--results", "both"]) == 0
    board = (own_folder / "both/tables/leaderboard.md").read_text("utf-8")
    assert board.count("## toy(") == 2
    assert main(["report", "--results", "both"]) == 0
    assert main(["explain", found["clp"].key, "--results", "both"]) == 0
    assert again in capsys.readouterr().out
    assert {row.model for row in verify(both).rows} <= {"wrn16_1"}
    capsys.readouterr()
    assert "belongs in table 1" in refused(capsys, "table", "1", "--results", str(results))


# What others get.


@pytest.fixture(scope="module")
def exported(kept: tuple[Path, bd.CellRecord], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, record = kept
    out = tmp_path_factory.mktemp("reader") / "exported"
    assert main(["export", record.key[:8], "--results", str(folder), "--out", str(out)]) == 0
    return out


def test_an_exported_network_needs_five_lines_and_no_bdbench(
    kept: tuple[Path, bd.CellRecord], exported: Path
) -> None:
    (block,) = ALONE
    assert len([line for line in block.text.splitlines() if line]) == 5
    told = f"""\
import sys
sys.modules["bdbench"] = None
{block.text}
assert logits.shape == (8, 10)
images = torch.load("images.pt", weights_only=True)
torch.save([network(part) for part in images.split(20)], "logits.pt")
"""
    images = to_float(kept[1].poisoned.triggered)
    torch.save(images, exported.parent / "images.pt")
    done = subprocess.run(
        [sys.executable, "-c", told], cwd=exported.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = torch.cat(torch.load(exported.parent / "logits.pt", weights_only=True))
    with torch.no_grad():
        assert torch.allclose(found, kept[1].network(images), atol=1e-4)
    text = (exported / "README.md").read_text("utf-8")
    assert block.text.replace("exported/", "").split("  #")[0] in text


@pytest.mark.parametrize("text", ["resnet18", "wrn16_1(mean=(0.5, 0.4, 0.3), deviation=0.25)"])
def test_a_program_gives_the_logits_of_its_network(text: str) -> None:
    network = models.build(text).build(7, 16).eval()
    network.precision = "bf16"
    loaded = torch.export.load(io.BytesIO(program(network, 16))).module()
    assert network.precision == "bf16"
    network.precision = "fp32"
    assert loaded.state_dict().keys() == network.state_dict().keys()
    for count in (1, 2, 5):
        images = torch.rand(count, 3, 16, 16)
        with torch.no_grad():
            assert torch.allclose(loaded(images), network(images), atol=1e-4)


def _pixels(file: Path) -> Tensor:
    """uint8 (n, 3, height, width), as any reader of Parquet and PNG sees them."""
    import numpy

    rows = pq.read_table(file).column("image").to_pylist()
    images = [numpy.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in rows]
    return torch.from_numpy(numpy.stack(images)).permute(0, 3, 1, 2)


def test_exported_images_are_those_of_the_cell(
    kept: tuple[Path, bd.CellRecord], exported: Path
) -> None:
    data, record = kept[1].poisoned, kept[1]
    table = pq.read_table(exported / "poisoned.parquet")
    assert table.column_names == ["image", "label", "poisoned", "cover", "true_label"]
    assert torch.equal(_pixels(exported / "poisoned.parquet"), data.train.images)
    for name, values in {
        "label": data.train.labels,
        "poisoned": data.mask,
        "cover": data.cover,
    }.items():
        assert table.column(name).to_pylist() == values.tolist()
    changed = sum(
        one != other
        for one, other in zip(
            table.column("label").to_pylist(), table.column("true_label").to_pylist(), strict=True
        )
    )
    assert changed == record.diagnostics.relabelled_images > 0
    assert torch.equal(_pixels(exported / "triggered.parquet"), data.triggered)
    targets = pq.read_table(exported / "triggered.parquet").column("target").to_pylist()
    assert targets == [0] * 50
    assert read_record(exported) == read(kept[0] / "records" / f"{record.key}.json").key


def read_record(folder: Path) -> str:
    return str(json.loads((folder / "record.json").read_text("utf-8"))["key"])


def test_exported_images_are_read_as_a_data_set(exported: Path, tmp_path: Path) -> None:
    shutil.copy(exported / "poisoned.parquet", tmp_path / "train-0.parquet")
    found, names = parquet.read(tmp_path, "train", 10, 16, None)
    assert len(found.finish()) == 100
    assert len(names) == 10
    about: Mapping[bytes, bytes] = pq.read_schema(exported / "poisoned.parquet").metadata
    features = json.loads(about[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"names": list(names), "_type": "ClassLabel"}
    assert features["poisoned"] == {"dtype": "bool", "_type": "Value"}


def test_a_network_that_was_not_saved_is_made_again_and_compared(
    kept: tuple[Path, bd.CellRecord],
    own_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, record = kept
    shutil.copytree(folder / "records", own_folder / "r/records")
    arguments = ["export", record.key, "--results", "r", "--device", "cpu", "--out"]
    assert main([*arguments, "new"]) == 0
    told = capsys.readouterr().out
    assert "was not saved: training it again, which took" in told
    assert "trained again differs" not in told
    made = networks.read(own_folder / "new/network.safetensors")
    assert made.facts["sha256"] == record.provenance.network_sha256
    # As if the record were of another machine.
    path = own_folder / f"r/records/{record.key}.json"
    document = json.loads(path.read_text())
    del document["checksum"], document["classes"]
    count = document["metrics"]["clean_accuracy"]
    count["hits"] = 50 - count["hits"]
    count["rate"] = round(count["hits"] / count["of"], 6)
    path.write_text(json.dumps(document))
    assert main([*arguments, "other"]) == 0
    sentence = "the clean accuracy of the network trained again differs from the record"
    assert sentence in capsys.readouterr().out
    assert sentence in (own_folder / "other/README.md").read_text("utf-8")


def test_an_export_replaces_only_what_an_export_made_and_only_if_told(
    kept: tuple[Path, bd.CellRecord], own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, record = kept
    arguments = ["export", record.key, "--results", str(folder), "--out", "new", "--no-network"]
    assert main(arguments) == 0
    names = {path.name for path in (own_folder / "new").iterdir()}
    assert names == {"poisoned.parquet", "triggered.parquet", "record.json", "README.md"}
    assert "torch.export" not in (own_folder / "new/README.md").read_text("utf-8")
    line = refused(capsys, *arguments)
    names_there = "README.md, poisoned.parquet, record.json, triggered.parquet"
    assert f"refusing to overwrite {names_there} in new: choose another --out" in line
    (own_folder / "new/poisoned.parquet").write_bytes(b"")
    (own_folder / "new/network.pt2").write_bytes(b"of another cell")
    (own_folder / "new/.poisoned.parquet.0.tmp").write_bytes(b"of an export that was killed")
    assert main([*arguments, "--force"]) == 0
    assert {path.name for path in (own_folder / "new").iterdir()} == names
    assert pq.read_table(own_folder / "new/poisoned.parquet").num_rows == 100


def test_a_program_that_cannot_be_made_costs_only_itself(
    kept: tuple[Path, bd.CellRecord],
    own_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, record = kept

    def fail(*arguments: object, **options: object) -> nn.Module:
        raise RuntimeError("data-dependent")

    monkeypatch.setattr(torch.export, "export", fail)
    assert main(["export", record.key, "--results", str(folder), "--out", "new"]) == 0
    assert "no network.pt2: torch.export cannot export the network" in capsys.readouterr().out
    names = {path.name for path in (own_folder / "new").iterdir()}
    assert "network.safetensors" in names
    assert "network.pt2" not in names
    assert "network.pt2" not in (own_folder / "new/README.md").read_text("utf-8")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_records_are_exported_as_a_table(
    form: str, kept: tuple[Path, bd.CellRecord], own_folder: Path
) -> None:
    import pandas as pd

    folder, record = kept
    out = own_folder / f"cells.{form}"
    arguments = ["export", "--results", str(folder), "--format", form, "--out", str(out)]
    assert main(arguments) == 0
    frame = pd.read_csv(out) if form == "csv" else pd.read_parquet(out)
    assert list(frame["key"].astype(str)) == [record.key]
    assert record.clean_accuracy is not None
    assert frame["clean_accuracy_hits"][0] == record.clean_accuracy.hits


def _small_stem(num_classes: int) -> nn.Module:
    """torchvision's network as people change it for small images."""
    network = torchvision.models.resnet18(num_classes=num_classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


@pytest.mark.parametrize(
    ("model", "make", "prefix"),
    [
        ("resnet18", _small_stem, "module."),
        *(
            (f"torchvision(name={name!r})", partial(torchvision.models.get_model, name), prefix)
            for name, prefix in (("resnet18", ""), ("mobilenet_v3_small", "net."))
        ),
    ],
)
def test_weights_have_the_names_of_torchvision(
    model: str, make: Callable[..., nn.Module], prefix: str
) -> None:
    torch.manual_seed(0)
    theirs = make(num_classes=10).eval()
    weights = {f"{prefix}{name}": values for name, values in theirs.state_dict().items()}
    source = bd.dataset("toy", image_size=32)
    own = models.build(model)
    network = own.build(10, 32).eval()
    network.load_state_dict(fitted(Stored(weights), own, source))
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(network(images), theirs(images), atol=1e-5)


def test_a_record_names_the_files_that_its_plugins_need(
    kept: tuple[Path, bd.CellRecord],
) -> None:
    _, chosen = kept
    lacking = replace(
        chosen,
        cell=chosen.cell.with_(defense="mine(side=2)"),
        provenance=chosen.provenance.with_(plugins=["my folder/mine.py"]),
    )
    with pytest.raises(InvalidInput) as refusal:
        cell_of_record(lacking)
    said = str(refusal.value)
    assert said.startswith("unknown defense 'mine'")
    assert said.endswith("was run with a plugin of your own: add --plugin 'my folder/mine.py'")
    with pytest.raises(InvalidInput, match=r"did you mean 'none'\?$"):
        cell_of_record(replace(lacking, provenance=chosen.provenance))

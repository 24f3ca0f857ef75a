"""Records survive the disk, and damage to them is named instead of believed."""

import json
import math
import operator
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from builders import ROOT, make_record
from hypothesis import given
from hypothesis import strategies as st

from bdbench.models.plugins.errors import InvalidInput
from bdbench.records import files as records
from bdbench.records.count import Count
from bdbench.records.parts import Diagnostics, Provenance
from bdbench.records.record import (
    FLAGS,
    METRICS,
    OPTIONAL,
    SCHEMA,
    STAGES,
    OtherSchema,
    Record,
    decode,
    encode,
    key_of,
)

SPECS = ("dataset", "model", "attack", "defense", "recipe")

ERROR = dict.fromkeys(("type", "message", "traceback"), "text")
POINT = {"epoch": 1, "clean_accuracy": 0.5, "attack_success_rate": None}

counts = st.integers(1, 10**6).flatmap(lambda of: st.builds(Count, st.integers(0, of), st.just(of)))
finite = st.floats(0, allow_infinity=False)
share = st.none() | st.floats(0, 1)
specs = st.fixed_dictionaries(dict.fromkeys(SPECS, st.text()))
scalar = st.none() | st.booleans() | st.integers() | st.text() | finite
nested = st.recursive(scalar, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=5)
texts = st.dictionaries(st.text(), st.text(), max_size=2)


def open_part(part, **known):
    """What a part may hold: these, any of which may be absent, and what no version knows yet."""
    free = st.text(max_size=8).filter(lambda name: name not in part.model_fields)
    later = st.dictionaries(free, nested, max_size=4)
    return st.builds(operator.or_, later, st.fixed_dictionaries({}, optional=known))


@st.composite
def any_record(draw):
    failed = draw(st.booleans())
    metrics = st.fixed_dictionaries(dict.fromkeys(METRICS, st.none() | counts))
    point = {"epoch": st.integers(0), "clean_accuracy": share, "attack_success_rate": share}
    error = st.fixed_dictionaries(dict.fromkeys(("type", "message", "traceback"), st.text()))
    return Record(
        schema=SCHEMA,
        key=draw(st.text("0123456789abcdef", min_size=16, max_size=16)),
        status="failed" if failed else "ok",
        cell=draw(specs) | {"seed": draw(st.integers(0))},
        labels=draw(specs),
        metrics=None if failed else draw(metrics),
        passes={"forward": draw(finite), "backward": draw(finite)},
        flags=tuple(draw(st.lists(st.sampled_from(FLAGS), unique=True))),
        curves=draw(st.lists(st.fixed_dictionaries(point | {"loss": share}), max_size=3)),
        diagnostics=draw(open_part(Diagnostics, scalars=st.dictionaries(st.text(), nested))),
        provenance=draw(open_part(Provenance, versions=texts, sources=texts, device=st.text())),
        measured={
            "seconds": {stage: draw(finite) for stage in STAGES},
            "peak_memory_bytes": draw(st.integers(0)),
            "images": draw(st.integers(0)),
            "images_per_second": draw(finite),
            "others": draw(st.none() | st.integers(0, 9) | finite),
            "started": "2030-01-01T00:00:00+00:00",
            "ended": "2030-01-01T00:01:00+00:00",
        },
        error=draw(error) if failed else None,
    )


@pytest.fixture
def record():
    return Record(
        schema=1,
        key="0123456789abcdef",
        status="ok",
        cell={
            "dataset": "toy(classes=10)",
            "model": "wrn16_1(width=1)",
            "attack": "blend(alpha=0.1)",
            "defense": "abl(gamma=0.5)",
            "recipe": "recipe(epochs=100)",
            "seed": 3,
        },
        labels=dict(zip(SPECS, ("toy", "wrn16_1", "blend", "abl", "recipe"), strict=True)),
        metrics={
            "clean_accuracy": Count(2, 3),
            "attack_success_rate": Count(0, 9),
            "robust_accuracy": None,
            "asr_floor": Count(1, 9),
        },
        passes={"forward": 100.0, "backward": 100.0},
        flags=("no_op",),
        curves=[POINT],
        diagnostics={"isolation": {"precision": 0.9}},
        provenance={"data_sha256": "ab" * 32, "notes": "naïve — 測試"},
        measured={
            "seconds": dict.fromkeys(STAGES, 1.5),
            "peak_memory_bytes": 1024,
            "images": 600,
            "images_per_second": 10.5,
            "others": 0.05,
            "started": "2030-01-01T00:00:00+00:00",
            "ended": "2030-01-01T00:01:00+00:00",
        },
        error=None,
    )


@pytest.fixture
def written(record, tmp_path):
    return records.write(tmp_path, record)


VERSIONS = {"dataset": 1, "model": 1, "attack": [1, 2], "defense": "ab" * 16}


def versioned(record, **cell):
    """With the versions of its plugins and the key that follows from them."""
    cell = record.cell.as_dict() | cell
    return replace(record, cell=cell, versions=VERSIONS, key=key_of(cell, VERSIONS))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@given(any_record())
def test_any_record_survives_encoding(record):
    text = json.dumps(encode(record), allow_nan=False)
    assert decode(json.loads(text)) == record


def test_a_record_survives_the_disk(record, written, tmp_path):
    assert written == tmp_path / "records" / "0123456789abcdef.json"
    assert records.read(written) == record
    assert names(written.parent) == [written.name]


def test_the_file_is_stable_and_readable(record, written, tmp_path):
    text = written.read_text()
    assert text.startswith('{\n "cell": {\n  "attack": "blend(alpha=0.1)",\n')
    assert text.endswith("\n}\n")
    assert json.loads(text)["metrics"]["clean_accuracy"] == {"hits": 2, "of": 3, "rate": 0.666667}
    records.write(tmp_path, replace(record, cell=dict(reversed(record.cell.as_dict().items()))))
    assert written.read_text() == text


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["diagnostics", "passes", "curves"])
def test_numbers_that_are_not_finite_are_refused(record, tmp_path, number, part):
    point = {"epoch": 1, "clean_accuracy": number, "attack_success_rate": None}
    broken = {
        "diagnostics": {"deep": [{"loss": number}]},
        "passes": {"forward": number, "backward": 1.0},
        "curves": [point],
    }
    with pytest.raises(ValueError, match=r"not JSON compliant|a number of at least 0"):
        records.write(tmp_path, replace(record, **{part: broken[part]}))
    assert names(tmp_path) == []


def test_a_record_that_could_not_be_read_is_not_written(record, tmp_path):
    with pytest.raises(InvalidInput, match="flags must be names"):
        records.write(tmp_path, replace(record, flags=("no flag!",)))
    assert names(tmp_path) == []


def test_a_record_that_is_too_large_to_be_read_is_not_written(record, tmp_path):
    large = replace(record, diagnostics={"warnings": ["x" * 400] * 50_000})
    with pytest.raises(InvalidInput, match="publish less in the journal"):
        records.write(tmp_path, large)
    assert names(tmp_path) == []


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_broken_write_leaves_the_old_file(record, written, monkeypatch, failure, call):
    before = written.read_bytes()

    def broken(*_):
        raise failure

    monkeypatch.setattr(os, call, broken)
    with pytest.raises((InvalidInput, KeyboardInterrupt)) as raised:
        records.write(written.parent.parent, replace(record, flags=()))
    if isinstance(failure, OSError):
        folder = written.parent
        assert str(raised.value) == (
            f"cannot write 0123456789abcdef.json in {folder}: No space left on device"
        )
    assert written.read_bytes() == before
    assert names(written.parent) == [written.name]


@pytest.mark.parametrize("inner", ["", "records"])
def test_a_folder_that_is_a_file_is_named(record, tmp_path, inner):
    folder = tmp_path / "results"
    obstacle = folder / inner
    obstacle.parent.mkdir(exist_ok=True)
    obstacle.write_text("in the way")
    with pytest.raises(InvalidInput, match=f"in {folder / 'records'}: (File exists|Not a dir)"):
        records.write(folder, record)
    assert obstacle.read_text() == "in the way"


def test_a_record_with_versions_survives_the_disk(record, tmp_path):
    whole = versioned(record)
    path = records.write(tmp_path, whole)
    assert records.read(path) == whole
    assert json.loads(path.read_text())["versions"] == VERSIONS


def test_a_record_without_versions_is_written_without(written):
    assert "versions" not in json.loads(written.read_text())


@pytest.mark.parametrize(
    "changes",
    [
        {"versions": VERSIONS | {"attack": [1, 3]}},
        {"versions": VERSIONS | {"model": 2}},
        {"cell": {"attack": "blend(alpha=0.2)"}},
        {"cell": {"seed": 4}},
        {"key": "f" * 16},
    ],
)
def test_a_key_that_is_not_that_of_its_cell_and_versions_is_damage(record, tmp_path, changes):
    whole = versioned(record)
    path = records.write(tmp_path, whole)
    document = json.loads(path.read_text())
    for part, change in changes.items():
        document[part] = document[part] | change if isinstance(change, dict) else change
    del document["checksum"]
    path = path.with_stem(document["key"])
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidInput, match="its key is not that of its cell"):
        records.read(path)
    with pytest.raises(InvalidInput, match="its key is not that of its cell"):
        records.write(tmp_path / "other", replace(whole, key="f" * 16))


def test_every_truncation_is_named_and_skipped(record, written):
    whole = written.read_bytes()
    other = records.write(written.parent.parent, replace(record, key="f" * 16))
    for length in range(0, len(whole) - 1, 20):
        written.write_bytes(whole[:length])
        good, damaged = records.read_all(written.parent.parent)
        assert [each.key for each in good] == [other.stem]
        assert len(damaged) == 1
        assert damaged[0].startswith(f"damaged record {written}: ")
        assert "\n" not in damaged[0]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"key": "xyz"}, "key 'xyz' is not 16 hex digits"),
        ({"status": "fine"}, "status must be one of ok, failed"),
        ({"status": "failed"}, "metrics must be null in failed records only"),
        ({"cell": {"seed": 0}}, "record.cell lacks attack, dataset, defense, model, recipe"),
        ({"labels": []}, "record.labels must be a valid dictionary, got list"),
        (
            {"passes": {"forward": True, "backward": 1}},
            "record.passes.forward must be a number of at least 0, got bool",
        ),
        ({"flags": "not_finite"}, "record.flags must be a valid tuple, got str"),
        ({"flags": [{}]}, "record.flags.0 must be a string, got dict"),
        ({"flags": ["no flag!"]}, "flags must be names"),
        ({"curves": [3]}, "record.curves.0 must be a valid dictionary, got 3"),
        ({"curves": [{"epoch": 1}]}, "curves.0: it lacks attack_success_rate, clean_accuracy"),
        ({"curves": [POINT | {"epoch": 1.5}]}, "record.curves.0: its epoch must be an integer"),
        ({"curves": [POINT | {"loss": "x"}]}, "record.curves.0.loss must be a number, got str"),
        ({"curves": [POINT | {"a b": 1}]}, "a part whose name is not an identifier"),
        ({"metrics": {}}, "record.metrics lacks asr_floor, attack_success_rate, clean_accuracy"),
        ({"metrics": 7}, "record.metrics must be a valid dictionary, got 7"),
        ({"measured": None}, "record.measured must be a valid dictionary, got NoneType"),
        ({"error": {}}, "record.error lacks message, traceback, type"),
        ({"error": ERROR}, "error must be null in records that are ok only"),
        ({"schema": "1"}, "record.schema must be a valid integer, got str"),
        ({"more parts": 1}, "it has a part whose name is not an identifier"),
        ({"provenance": {"device": 3}}, "record.provenance.device must be a string, got 3"),
        ({"provenance": {"threads": "many"}}, "threads must be a valid integer, got str"),
        ({"provenance": {"titles": ["x"]}}, "titles must be a valid dictionary, got list"),
        ({"provenance": {"titles": {"defense": 3}}}, "titles.defense must be a string, got 3"),
        ({"provenance": {"plugins": "x.py"}}, "plugins must be a valid list, got str"),
        ({"provenance": {"plugins": [3]}}, "plugins.0 must be a string, got 3"),
        ({"diagnostics": {"warnings": ["w", 3]}}, "warnings.1 must be a string, got 3"),
        ({"diagnostics": {"lent": {"fit": "many"}}}, "fit must be a valid integer, got str"),
        ({"diagnostics": {"samples": {"kept": {"tpr": "x"}}}}, "its tpr must be a number, got str"),
        ({"diagnostics": {"samples": {"kept": {"recall": None}}}}, "kept: its recall must be"),
        ({"diagnostics": {"samples": {"loss": {"auroc": [1]}}}}, "its auroc must be a number"),
        (
            {"diagnostics": {"parts": {"sig_2": {"samples": {"w": {"mean_clean": True}}}}}},
            "parts.sig_2.samples.w: its mean_clean must be a number, got bool",
        ),
        ({"diagnostics": math.nan}, "NaN is not a JSON number"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(written, changes, complaint):
    edit(written, **changes)
    with pytest.raises(InvalidInput) as raised:
        records.read(written)
    assert str(written) in str(raised.value)
    assert complaint in str(raised.value)
    assert records.read_all(written.parent.parent) == ([], [str(raised.value)])


def test_older_records_without_captures_images_and_others_are_read(record, written):
    document = json.loads(written.read_text())
    del document["checksum"], document["measured"]["seconds"]["capture"]
    del document["measured"]["images"], document["measured"]["others"]
    written.write_text(json.dumps(document))
    found = records.read(written)
    assert found.measured.images is found.measured.others is None
    assert found.measured.seconds.capture is None
    assert encode(found) == document


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"others": "many"}, "record.measured.others must be a number, got str"),
        ({"images": 1.5}, "record.measured.images must be a valid integer, got 1.5"),
        (
            {"seconds": dict.fromkeys(STAGES, -1.0)},
            "record.measured.seconds.load must be a number of at least 0, got -1.0",
        ),
        ({"seconds": {"capture": 1.0}}, "record.measured.seconds lacks evaluate, fit, load"),
    ],
)
def test_a_measure_that_cannot_be_is_named(record, written, changes, complaint):
    edit(written, measured=record.measured.as_dict() | changes)
    with pytest.raises(InvalidInput, match=complaint):
        records.read(written)


def test_parts_of_a_later_version_are_kept(record, written, tmp_path):
    later = json.loads(written.read_text())
    del later["checksum"]
    later["reactivation"] = {"p_asr": 0.5}
    later["flags"] = ["at_chance"]
    later["metrics"]["p_asr"] = {"hits": 1, "of": 4, "rate": 0.25}
    later["passes"]["critic"] = 1.0
    later["measured"] |= {"energy_joules": 5.0}
    later["measured"]["seconds"]["reactivate"] = 2.0
    later["provenance"]["cluster"] = "ours"
    written.write_text(json.dumps(later))
    found = records.read(written)
    assert found.metrics.p_asr == found.count("p_asr") == Count(1, 4)
    again = records.write(tmp_path / "again", found)
    document = json.loads(again.read_text())
    del document["checksum"]
    assert document == later


@pytest.mark.parametrize("part", ["cell", "labels"])
def test_what_a_cell_is_has_no_unknown_parts(written, part):
    edit(written, **{part: json.loads(written.read_text())[part] | {"novel": "x"}})
    with pytest.raises(InvalidInput, match=f"record.{part} has unknown fields: novel"):
        records.read(written)


PARTS = [name for name in Record.__dataclass_fields__ if name not in (*OPTIONAL, "more")]


@pytest.mark.parametrize("missing", PARTS)
def test_a_missing_field_is_named(written, missing):
    document = json.loads(written.read_text())
    del document[missing]
    written.write_text(json.dumps(document))
    with pytest.raises(InvalidInput, match=f"record lacks {missing}"):
        records.read(written)


@pytest.mark.parametrize(
    "count", [{"hits": 4, "of": 3, "rate": 1.0}, {"hits": 0, "of": 0, "rate": 0}]
)
def test_impossible_counts_are_damage(written, count):
    edit(written, metrics=dict.fromkeys(METRICS, count))
    with pytest.raises(InvalidInput, match="is not a count"):
        records.read(written)


def test_a_rate_that_contradicts_its_counts_is_damage(written):
    count = {"hits": 1, "of": 3, "rate": 0.33}
    edit(written, metrics=dict.fromkeys(METRICS, count))
    with pytest.raises(InvalidInput, match=r"metrics.clean_accuracy: rate is not hits / of"):
        records.read(written)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"1" * 5000])
def test_files_that_are_no_records_are_named(written, content):
    written.write_bytes(content)
    with pytest.raises(InvalidInput, match="damaged record") as raised:
        records.read(written)
    assert "\n" not in str(raised.value)


def test_another_schema_is_refused_and_left_alone(written):
    edit(written, schema=2, novel="field")
    before = written.read_bytes()
    for attempt in (lambda: records.read(written), lambda: records.read_all(written.parent.parent)):
        with pytest.raises(OtherSchema) as raised:
            attempt()
        assert str(raised.value) == (
            f"{written}: the record has schema 2, this version reads schema 1; "
            "the file was left untouched"
        )
    assert written.read_bytes() == before


def test_reading_a_folder(record, written, tmp_path):
    first = records.write(tmp_path, replace(record, key="0" * 16))
    for stray in (".0123.json.ab.tmp", "._0123456789abcdef.json", "notes.txt"):
        (written.parent / stray).write_text("stray")
    (written.parent / "folder.json").mkdir()
    good, damaged = records.read_all(tmp_path)
    assert [each.key for each in good] == [first.stem, written.stem]
    assert damaged == [f"cannot read record {written.parent / 'folder.json'}: Is a directory"]


def test_a_folder_without_records_is_empty(tmp_path):
    assert records.read_all(tmp_path / "nowhere") == ([], [])
    with pytest.raises(InvalidInput, match=r"cannot read record .*: No such file"):
        records.read(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("records.files", ("torch", "pandas")),
        ("tables.statistics", ("torch",)),
        ("tables.write", ("torch",)),
    ],
)
def test_reading_results_is_light(module, absent):
    code = f"import sys, bdbench.{module}; print(*(set(sys.modules) & set({absent!r})))"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split() == []


def test_a_key_names_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of one cell may differ between folders: none of them is taken unasked."""
    monkeypatch.chdir(tmp_path)
    one, other = make_record("none", "badnets", 900, 900), make_record("cbd", "badnets", 900, 90)
    for folder, record in (("a", one), ("a", other), ("b", one)):
        records.write(Path("results") / folder, record)
    Path("results/notes.md").touch()
    assert records.find(other.key[:8], None) == Path(f"results/a/records/{other.key}.json")
    assert records.find(one.key, Path("results/b")) == Path(f"results/b/records/{one.key}.json")
    for key, complaint in (
        (one.key, f"cell {one.key} has records in results/a, results/b; choose one with --res"),
        ("zz", "no record 'zz' in results/a, results/b; name its folder with --results"),
        ("../a", "no record '../a' in results/a, results/b; name its folder"),
    ):
        with pytest.raises(InvalidInput) as refusal:
            records.find(key, None)
        assert str(refusal.value).startswith(complaint)
    with pytest.raises(InvalidInput, match=r"in results/a; results/a/records shows them"):
        records.find("zz", Path("results/a"))

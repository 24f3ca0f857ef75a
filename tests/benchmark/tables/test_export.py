"""Records as rows for other programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from builders import ROOT, make_record

import bdbench as bd
from bdbench.models.plugins.errors import InvalidInput
from bdbench.records.files import read_all
from bdbench.records.record import METRICS, Record
from bdbench.tables import export


def made(defense: str, *shares: int | None, **options: Any) -> Record:
    record = make_record(defense.partition("(")[0], "badnets", *shares, **options)
    attack = "badnets(poisoning_rate=0.1, pattern='grid')"
    return replace(record, cell=record.cell.with_(defense=defense, attack=attack))


CURVE = [
    {"epoch": 1, "clean_accuracy": 0.5, "attack_success_rate": None, "clean_loss": 2},
    {"epoch": 2, "clean_accuracy": 0.75, "attack_success_rate": 1, "clean_loss": 1.5},
]
SOME = [
    replace(made("cbd(t1=3, beta=0.1)", 900, 20), curves=CURVE),
    made("nad(betas=(1.0, 2.0), last=True)", 950, None, seed=1, flags=("no_op", "at_chance")),
    made("nad(betas='search', last=False)", None, seed=2**62),
]


def test_a_row_has_every_field_of_a_record() -> None:
    rows = export.rows(SOME)
    assert len({tuple(row) for row in rows}) == 1
    first, second, failed = rows
    assert first["defense"] == "cbd"
    assert first["defense_spec"] == "cbd(t1=3, beta=0.1)"
    assert (first["defense.t1"], first["defense.beta"]) == (3, 0.1)
    assert first["attack.poisoning_rate"] == 0.1
    assert first["recipe.epochs"] == 30
    assert (first["clean_accuracy_hits"], first["clean_accuracy_of"]) == (900, 1000)
    interval = (first["clean_accuracy_low"], first["clean_accuracy_high"])
    assert interval == bd.Count(900, 1000).interval
    assert first["seconds"] == 60
    assert first["seconds_load"] == 1
    assert first["precision"] == "fp32"
    assert second["attack_success_rate"] is None
    assert second["attack_success_rate_low"] is None
    assert second["flags"] == "no_op at_chance"
    assert failed["status"] == "failed"
    assert (failed["error_type"], failed["error"]) == ("RuntimeError", "out of memory")
    assert failed["defense.t1"] is None


def test_columns_have_fixed_types_and_a_fixed_order() -> None:
    table = export.frame(SOME)
    assert list(table) == list(export.frame(SOME[::-1]))
    kinds = {name: str(dtype) for name, dtype in table.dtypes.items()}
    assert kinds["seed"] == kinds["defense.t1"] == kinds["clean_accuracy_hits"] == "Int64"
    assert kinds["clean_accuracy"] == kinds["defense.beta"] == kinds["others"] == "float64"
    assert kinds["defense.last"] == kinds["isolated"] == "boolean"
    assert kinds["key"] == kinds["defense.betas"] == kinds["commit"] == "string"
    assert table["seed"].tolist() == [0, 1, 2**62]
    assert table["defense.betas"].tolist()[1:] == ["(1.0, 2.0)", "search"]
    assert {str(kind) for kind in export.frame([]).dtypes} <= {
        *("string", "Int64", "float64", "boolean")
    }


def test_an_epoch_has_a_row_of_its_own() -> None:
    rows = export.rows(SOME, epochs=True)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["clean_accuracy"] for row in rows] == [0.5, 0.75]
    table = export.frame(SOME, epochs=True)
    assert table["clean_loss"].tolist() == [2, 1.5]
    assert table["attack_success_rate"].isna().tolist() == [True, False]
    assert {"key", "seed", "defense.t1", "epoch"} <= {*table}
    assert not {"seconds", "clean_accuracy_hits"} & {*table}


@pytest.mark.parametrize("epochs", [False, True])
def test_parquet_has_the_values_of_the_frame(epochs: bool, tmp_path: Path) -> None:
    path = tmp_path / "cells.parquet"
    export.write(SOME, path, "parquet", epochs)
    expected = export.frame(SOME, epochs)
    read = pd.read_parquet(path).astype(expected.dtypes.to_dict())
    pd.testing.assert_frame_equal(read, expected)
    types = {field.name: str(field.type) for field in pq.read_schema(path)}
    assert types["seed"] == types["defense.t1"] == "int64"
    assert types["clean_accuracy"] == "double"
    assert "null" not in types.values()


def test_csv_escapes_formulas_and_line_breaks(tmp_path: Path) -> None:
    bad = made("cbd(t1=3)", None)
    error = {"type": "+E", "message": "@SUM(1)\nsecond\x1b[2J", "traceback": ""}
    origin = {
        "device": "-1",
        "data_sha256": "a\r\nb",
        "versions": {"torch": "=2", "=x": "1", "\n": "2"},
    }
    labels = bad.labels.with_(defense="=HYPERLINK('x')")
    bad = replace(bad, labels=labels, error=error, provenance=origin)
    path = tmp_path / "cells.csv"
    export.write([bad], path, "csv", False)
    text = path.read_text()
    assert text.count("\n") == 2
    read = pd.read_csv(path)
    assert read["defense"][0] == "'=HYPERLINK('x')"
    assert read["device"].astype(str)[0] == "'-1"
    assert read["error"][0] == "'@SUM(1) second\\x1b[2J"
    assert read["error_type"][0] == "'+E"
    assert read["version.torch"][0] == "'=2"
    assert read[["commit", "threads"]].isna().all(axis=None)
    assert not [name for name in read if not name.replace(".", "").isidentifier()]


@pytest.mark.parametrize("form", export.FORMS)
def test_text_that_is_not_unicode_is_escaped(form: str, tmp_path: Path) -> None:
    record = made("cbd(t1=3)", 900, 20)
    odd = replace(record, provenance={"device": "\udcff", "versions": {"torch": "2 \ud800"}})
    path = tmp_path / f"cells.{form}"
    export.write([odd], path, form, False)
    read = pd.read_csv(path) if form == "csv" else pd.read_parquet(path)
    assert (read["device"][0], read["version.torch"][0]) == (r"\udcff", r"2 \ud800")


def test_a_number_too_large_for_an_integer_column_becomes_a_float() -> None:
    record = made("cbd(t1=3)", 900, 20)
    large = replace(record, measured=record.measured.with_(peak_memory_bytes=10**90))
    assert export.frame([large])["peak_memory_bytes"][0] == 1e90


@pytest.mark.parametrize(
    ("records", "form", "epochs", "complaint"),
    [
        ([], "csv", False, "there are no records to export"),
        (SOME[1:], "csv", True, "no record has curves; record them with `bdbench run --curves`"),
        (SOME, "xlsx", False, "format must be one of csv, parquet, got 'xlsx'"),
    ],
)
def test_an_impossible_export_is_refused_and_writes_nothing(
    records: list[Record], form: str, epochs: bool, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "cells.csv"
    path.write_text("before")
    with pytest.raises(InvalidInput, match=complaint):
        export.write(records, path, form, epochs)
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["cells.csv"]


def test_published_records_have_the_same_frame_in_python() -> None:
    folder = ROOT / "results/digits"
    records, _ = read_all(folder)
    frame = bd.load(folder).frame()
    assert len(frame) == len(records)
    assert frame["recipe.epochs"].tolist() == [30] * len(records)
    assert set(frame["defense.updates"].dropna()) >= {320, 2370}
    for metric in METRICS:
        assert (frame[f"{metric}_low"] <= frame[metric]).all()
        assert frame[metric].tolist() == (frame[f"{metric}_hits"] / frame[f"{metric}_of"]).tolist()
    assert bd.load(folder).frame(epochs=True).empty

"""Input made to do harm: none of it is run, no file is written elsewhere, and the answer is quick
and one line."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import os
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from bdbench.attacks.registry import attacks
from bdbench.cells.cell import recipe_of
from bdbench.cli import main
from bdbench.datasets import gtsrb, images, parquet
from bdbench.datasets.files import content_of
from bdbench.datasets.registry import datasets
from bdbench.defenses.registry import defenses
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import LONGEST, InvalidInput, one_line
from bdbench.models.plugins.registry import load_file
from bdbench.models.plugins.spec import Spec
from bdbench.models.training.recipe import Recipe
from bdbench.records import files as records
from bdbench.records.merge import merge
from bdbench.records.record import encode
from bdbench.storage import artefacts, mark

FIXED = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
HUGE = "9" * 400
"""An integer that no float can hold."""


@pytest.fixture(autouse=True, scope="module")
def imported() -> None:
    """What a command imports is not what it is timed for."""
    for module in ("cli.catalogue", "figures", "figures.preview", "running.run", "tables.write"):
        importlib.import_module(f"bdbench.{module}")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders down, so that there is an outside."""
    folder = tmp_path / "outside/inside"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def short(message: str) -> bool:
    return message.isprintable() and len(message) <= LONGEST


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one short line that a command refuses with, soon."""
    started = time.process_time()
    assert main(arguments) == 2
    assert time.process_time() - started < 1
    said = capsys.readouterr().err
    assert said.startswith("bdbench: ")
    assert said.endswith("\n")
    assert short(said.removeprefix("bdbench: ").removesuffix("\n"))
    return said


SPECS = {
    "call": "badnets(__import__('os').system('touch x'))",
    "call in a field": "badnets(target=__import__('os').system('touch x'))",
    "open": "open('x', 'w')",
    "call of a call": "badnets()()",
    "nested call": "badnets(target=badnets())",
    "attribute": "badnets.__class__",
    "attribute in a field": "badnets(target=().__class__)",
    "subscript": "badnets[0]",
    "lambda": "(lambda: 1)()",
    "lambda in a field": "badnets(target=lambda: 1)",
    "f-string": "f'{1}'",
    "f-string in a field": "badnets(target=f'{1}')",
    "comprehension": "badnets(target=[i for i in (1,)])",
    "walrus": "badnets(target=(x := 1))",
    "power": "badnets(target=9**9**9)",
    "repetition": "badnets(pattern='x' * 10**10)",
    "stars": "badnets(**{'target': 1})",
    "statement": "import os",
    "two statements": "badnets; badnets",
    "two lines": "badnets\nbadnets",
    "warning": "badnets(target=1if 1else 2)",
    "escape": r"badnets(pattern='\d')",
    "parentheses": "(" * 10_000 + ")" * 10_000,
    "fewer parentheses": "(" * 450 + ")" * 450,
    "brackets in a field": "badnets(target=" + "[" * 450 + "]" * 450 + ")",
    "signs": "badnets(target=" + "-" * 900 + "1)",
    "ten megabytes": "x" * 10_000_000,
    "ten megabytes of digits": f"badnets(target={'9' * 10_000_000})",
    "huge integer": f"badnets(target={HUGE})",
    "huge integer for a float": f"badnets(poisoning_rate={HUGE})",
    "infinity": "badnets(poisoning_rate=1e999)",
    "complex": "badnets(target=1j)",
    "parent": "../../x",
    "folder": "a/b",
    "absolute": "/etc/passwd",
    "NUL": "a\0b",
    "NUL in a field": "badnets(pattern='\0')",
    "ten kilobytes": "x" * 10_000,
    "escape sequence": "\x1b[2J",
    "direction": "\u202ebadnets",
    "surrogate": "\udcff",
    "empty": "",
}


@pytest.mark.parametrize("option", ["--attack", "--defense", "--dataset", "--model", "--recipe"])
@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in SPECS.items()])
def test_a_spec_that_is_none_is_refused_and_never_run(
    own_folder: Path, capsys: pytest.CaptureFixture[str], option: str, text: str
) -> None:
    refused(capsys, "run", "--dry-run", option, text)
    assert files(own_folder.parent) == []


@settings(FIXED, max_examples=150)
@given(st.text(max_size=60) | st.text("abx()[]{}=,'\"\\.:+-*19ej \n#", max_size=60))
@example("x(a=1_0)")
@example("x(a=-(-1))")
def test_any_text_is_a_spec_or_refused(text: str) -> None:
    try:
        found = Spec.of(text)
    except InvalidInput as error:
        assert short(str(error))
    else:
        assert found.name.isidentifier()
        assert all(key.isidentifier() for key in found.fields)


LITERALS = (
    *("0", "-1", "1e-320", "1e308", "1e999", "-1e999", HUGE, "9" * 18, "True", "None", "1j"),
    *("''", "'x'", "'../../x'", r"'\x00'", "b''", "...", "'badnets('", "[]", "{}", "{1: {}}"),
    *("()", "(1,)", "('a',)", "((),)", "(-1,)", "(1e999,)", f"({HUGE},)", "(1, 2, 3)"),
)
FIELDS = [
    (build, name, field)
    for registry, build in (
        (attacks, attacks.build),
        (defenses, defenses.build),
        (datasets, datasets.build),
    )
    for name in registry.names()
    for field in spec.fields_of(registry.factory(name))
] + [(recipe_of, "recipe", field) for field in spec.fields_of(Recipe)]


@pytest.mark.parametrize("literal", LITERALS)
def test_any_value_of_any_field_is_accepted_or_refused(literal: str) -> None:
    for build, name, field in FIELDS:
        with contextlib.suppress(InvalidInput):
            build(f"{name}({field}={literal})")


def test_what_is_accepted_can_be_written_and_read_again() -> None:
    for text in ("nad(betas=(1, 2, 3))", "nad(betas=[1.0, 2.0, 3.0])"):
        canonical = defenses.canonical(text)
        assert "betas=(1.0, 2.0, 3.0)" in canonical
        assert defenses.canonical(canonical) == canonical
    for short in ("(1.0,)", "()", "(1.0, 2.0, 3.0, 4.0)", "'serch'"):
        with pytest.raises(InvalidInput, match="betas must be three numbers of at least 0, or"):
            defenses.build(f"nad(betas={short})")
    with pytest.raises(InvalidInput, match="betas of defense 'nad' must be finite, got inf"):
        defenses.canonical("nad(betas=(1.0, 2.0, 1e999))")


NAMES = {
    "parent": "../../x",
    "folder": "a/b",
    "absolute": "/etc/passwd",
    "NUL": "a\0b",
    "ten kilobytes": "x" * 10_000,
    "a megabyte": "x" * 1_000_000,
    "escape sequence": "\x1b[2J",
    "direction": "\u202exyz",
    "surrogate": "\udcff",
}


@pytest.mark.parametrize(
    "command",
    [
        ["run"],
        ["describe"],
        ["list"],
        ["table"],
        ["figure"],
        ["data", "prepare"],
        ["data", "preview"],
        ["data", "preview", "none", "--dataset"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("name", [pytest.param(name, id=kind) for kind, name in NAMES.items()])
def test_a_name_is_no_path(
    own_folder: Path, capsys: pytest.CaptureFixture[str], command: list[str], name: str
) -> None:
    refused(capsys, *command, name)
    assert files(own_folder.parent) == []


def test_a_key_is_no_path(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = own_folder.parent / "secret.json"
    secret.write_text("{}")
    (own_folder / "results/quick/records").mkdir(parents=True)
    for key in ("../../../../secret", "/etc/passwd", "*", "a\0b", "x" * 10_000, "\x1b[2J", ""):
        assert "no record" in refused(capsys, "explain", key)


@pytest.mark.parametrize(
    "key", ["../x", "a/b", "/x", "", "a\0b", "0" * 15, "0123456789ABCDEF", "*"]
)
def test_artefacts_are_of_a_cell(own_folder: Path, key: str) -> None:
    arrays = {"mask": np.array([True])}
    for use in (
        lambda: artefacts.save(key, own_folder, arrays),
        lambda: artefacts.load(key, own_folder),
    ):
        with pytest.raises(InvalidInput, match="is not 16 hex digits"):
            use()
    assert files(own_folder.parent) == []


def test_what_is_in_the_way_of_artefacts_is_passed_over(own_folder: Path) -> None:
    key = "0123456789abcdef"
    folder = own_folder / "artefacts"
    (folder / f"{key}-folder.safetensors").mkdir(parents=True)
    os.mkfifo(folder / f"{key}-pipe.safetensors")
    (own_folder / mark.TAG).write_text(mark.CONTENT)
    assert artefacts.load(key, own_folder) is None
    artefacts.save(key, own_folder, {"mask": np.array([True])})
    found = artefacts.load(key, own_folder)
    assert found is not None
    assert found["mask"].tolist() == [True]


# Images and Parquet


def png(width: int = 8, height: int = 8, extra: bytes = b"") -> bytes:
    """A PNG of 8 x 8 black pixels that claims another size and has a further chunk."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    content = file.getvalue()
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return content[:8] + chunk(b"IHDR", size + content[24:29]) + extra + content[33:]


def chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(kind + body).to_bytes(4, "big")
    return len(body).to_bytes(4, "big") + kind + body + checksum


INFLATED = zlib.compress(bytes(100_000_000))
BOMBS = {
    "100,000 x 100,000 pixels": png(100_000, 100_000),
    "10,000 x 10,000 pixels": png(10_000, 10_000),
    "2,147,483,647 x 1 pixels": png(2**31 - 1, 1),
    "no pixels": png(0, 0),
    "zTXt": png(extra=chunk(b"zTXt", b"a\0\0" + INFLATED)),
    "iTXt": png(extra=chunk(b"iTXt", b"a\0\1\0\0\0" + INFLATED)),
    "iCCP": png(extra=chunk(b"iCCP", b"a\0\0" + INFLATED)),
}


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What Python has the memory of; pixels are Pillow's, and the test sees to those itself."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", BOMBS)
def test_an_image_bomb_is_refused_before_it_unfolds(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("pixels were decoded"))
    started = time.process_time()
    with pytest.raises(InvalidInput, match="x: image") as refusal:
        images.decode(BOMBS[name], 8, None, "x")
    assert short(str(refusal.value))
    assert time.process_time() - started < 1


def test_a_bomb_in_a_data_set_is_one_line(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_folder / "cifar10").mkdir()
    for split in ("train", "test"):
        write_shard(own_folder / f"cifar10/{split}-0.parquet", [BOMBS["100,000 x 100,000 pixels"]])
    said = refused(capsys, "data", "prepare", "cifar10", "--data", ".")
    assert "cifar10/train-0.parquet row 0: image is larger than 10000x10000 pixels" in said


def test_the_picture_of_the_bombs_is_sound() -> None:
    assert images.decode(png(), 8, None, "x") == bytes(3 * 8 * 8)


def write_shard(path: Path, contents: list[bytes], **options: Any) -> bytes:
    shape = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": content, "path": "x"} for content in contents], shape)
    pq.write_table(pa.table({"img": column, "label": [0] * len(contents)}), path, **options)
    return path.read_bytes()


def varint(number: int) -> bytes:
    """As Parquet's metadata have it: zigzag, seven bits to a byte."""
    number *= 2
    written = b""
    while number > 127:
        written += bytes([number % 128 | 128])
        number //= 128
    return written + bytes([number])


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("rows", [0, 99, 101, 2**40, 2**62])
def test_a_bogus_number_of_rows_is_refused(own_folder: Path, rows: int) -> None:
    path = own_folder / "train-0.parquet"
    content = write_shard(path, [png()] * 100)
    length = int.from_bytes(content[-8:-4], "little")
    body, footer = content[: -8 - length], content[-8 - length : -8]
    footer = footer.replace(varint(100), varint(rows), 1)
    path.write_bytes(body + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    assert pq.ParquetFile(path).metadata.num_rows == rows
    with pytest.raises(InvalidInput, match="rows are missing"):
        parquet.read(own_folder, "train", 10, 8, None)


def test_a_column_that_would_fill_the_memory_is_never_read(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own_folder / "train-0.parquet"
    monkeypatch.setattr(parquet, "LARGEST_CHUNK", 1_000_000)
    assert len(write_shard(path, [bytes(1_000_000)], compression="zstd")) < 10_000
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("it is read"))
    with pytest.raises(InvalidInput, match=r"a file of [\d,]+ bytes would become 1,000,\d\d\d"):
        parquet.read(own_folder, "train", 10, 8, None)


def write_gtsrb(base: Path, filename: str = "00000.ppm") -> Path:
    training, pictures = base / "GTSRB/Training/00000", base / "GTSRB/Final_Test/Images"
    for folder in (training, pictures):
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "00000.ppm")
    table = base / "GT-final_test.csv"
    table.write_text(f"Filename;ClassId\n{filename};7\n")
    return pictures


@pytest.mark.parametrize(
    "filename", ["../../../secret.ppm", "/etc/passwd.ppm", "a\0b.ppm", "x" * 10_000 + ".ppm"]
)
def test_a_table_of_gtsrb_names_no_file_elsewhere(own_folder: Path, filename: str) -> None:
    pictures = write_gtsrb(own_folder, filename)
    Image.new("RGB", (8, 8)).save(own_folder / "secret.ppm")
    with pytest.raises(InvalidInput, match=f"cannot read {pictures}") as refusal:
        gtsrb.archive(own_folder, "", "Training").decode()
    assert short(str(refusal.value))


def test_a_table_of_gtsrb_names_no_file_that_is_not_hashed(own_folder: Path) -> None:
    pictures = write_gtsrb(own_folder, "picture.png")
    os.mkfifo(pictures / "picture.png")
    with pytest.raises(InvalidInput, match=r"'picture\.png' is not a file"):
        gtsrb.archive(own_folder, "", "Training").decode()


@pytest.mark.timeout(20)
def test_a_pipe_among_the_images_is_not_waited_for(own_folder: Path) -> None:
    os.mkfifo(write_gtsrb(own_folder) / "00001.ppm")
    with pytest.raises(InvalidInput, match=r"00001\.ppm: is not a file"):
        content_of(gtsrb.archive(own_folder, "", "Training"))


# Records

RECORD = builders.make_record("cbd", "badnets", 850, 13)
OTHER = builders.make_record("none", "badnets", 900, 990)


@pytest.fixture
def path(own_folder: Path) -> Path:
    records.write(own_folder / "r", OTHER)
    return records.write(own_folder / "r", RECORD)


def altered(path: Path, **changes: Any) -> str:
    """The text of a record without checksum and with other fields."""
    document = json.loads(path.read_bytes())
    del document["checksum"]
    return json.dumps(document | changes)


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


TEXTS: dict[str, Callable[[Path], str]] = {
    "deep": lambda p: altered(p, diagnostics={"a": 7}).replace("7", "[" * 10**5 + "]" * 10**5),
    "rather deep": lambda p: altered(p, diagnostics={"a": nested(60)}),
    "10 MB key": lambda p: altered(p, **{"x" * 10**7: 1}),
    "10 MB flag": lambda p: altered(p, flags=["\x1b" * 10**6]),
    "20 MB": lambda p: altered(p, diagnostics={"a": "x" * 2 * 10**7}),
    "duplicate": lambda p: altered(p).replace('"seed": 0', '"seed": 0, "seed": 0'),
    "1e999": lambda p: altered(p).replace("10.5", "1e999"),
    "-1e999": lambda p: altered(p, diagnostics={"a": 10.5}).replace('"a": 10.5', '"a": -1e999'),
    "NaN": lambda p: altered(p).replace("10.5", "NaN"),
    "-Infinity": lambda p: altered(p).replace("10.5", "-Infinity"),
    "10,000 digits": lambda p: altered(p).replace("1024", "9" * 10_000),
    "400 digits": lambda p: altered(p).replace("1024", HUGE),
    "negative seconds": lambda p: altered(p).replace('"fit": 60.0', '"fit": -60.0'),
    "true seconds": lambda p: altered(p).replace('"fit": 60.0', '"fit": true'),
    "other key": lambda p: altered(p, key="f" * 16),
    "path as key": lambda p: altered(p, key="../../../../x"),
    "escape sequence": lambda p: altered(p, labels=RECORD.labels | {"attack": "\x1b[2J"}),
    "long label": lambda p: altered(p, labels=RECORD.labels | {"attack": "x" * 10_000}),
    "number as checksum": lambda p: altered(p, checksum=0),
    "no object": lambda p: "[" + altered(p) + "]",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_hostile_record_is_named_and_left_out(
    own_folder: Path, path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(TEXTS[kind](path))
    before = files(own_folder.parent)
    started = time.process_time()
    assert main(["table", "--results", "r"]) == 1
    assert time.process_time() - started < 3
    said = capsys.readouterr().err.removesuffix("\n")
    assert str(path.relative_to(own_folder)) in said
    assert said.isprintable()
    assert len(said) < LONGEST + 50
    made_here = set(files(own_folder.parent)) - set(before)
    assert all(each.is_relative_to(own_folder / "r/tables") for each in made_here)
    assert [each.key for each in records.read_all(own_folder / "r")[0]] == [OTHER.key]


def test_merging_writes_no_record_elsewhere(own_folder: Path, path: Path) -> None:
    path.write_text(altered(path, key="../../../../x"))
    merge([own_folder / "r"], own_folder / "into")
    assert files(own_folder / "into") == [own_folder / f"into/records/{OTHER.key}.json"]
    assert all(each.is_relative_to(own_folder) for each in files(own_folder.parent))


def test_zero_has_no_sign(path: Path) -> None:
    path.write_text(altered(path).replace('"undefended": 0.0', '"undefended": -0.0'))
    assert records.read(path) == RECORD


def link(path: Path, to: str | Path) -> None:
    path.unlink()
    path.symlink_to(to)


IN_THE_WAY: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (lambda p: (p.unlink(), p.mkdir()), "cannot read record {}: Is a directory"),
    "pipe": (lambda p: (p.unlink(), os.mkfifo(p)), "damaged record {}: it is no file"),
    "link to a pipe": (
        lambda p: (os.mkfifo(p.with_suffix(".pipe")), link(p, p.with_suffix(".pipe"))),
        "damaged record {}: it is no file",
    ),
    "link to a device": (lambda p: link(p, "/dev/zero"), "damaged record {}: it is no file"),
    "link to nothing": (lambda p: link(p, "nothing"), "cannot read record {}: No such file or"),
    "link to itself": (lambda p: link(p, p.name), "cannot read record {}: Too many levels"),
    "a terabyte of nothing": (
        lambda p: os.truncate(p, 2**40),
        "damaged record {}: it has more than 16,777,216 bytes",
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_what_is_no_record_file_is_one_line(path: Path, kind: str) -> None:
    put, complaint = IN_THE_WAY[kind]
    put(path)
    found, (said,) = records.read_all(path.parent.parent)
    assert found == [OTHER]
    assert said.startswith(complaint.format(path))
    assert short(said)


def test_an_unreadable_record_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_bytes = Path.read_bytes

    def guarded(self: Path) -> bytes:
        # Taking the permission away would not do: the tests may run as the superuser.
        if self == path:
            raise PermissionError(13, "Permission denied")
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    found, damaged = records.read_all(path.parent.parent)
    assert found == [OTHER]
    assert damaged == [f"cannot read record {path}: Permission denied"]


def test_a_link_to_a_record_is_a_record(own_folder: Path, path: Path) -> None:
    path.rename(own_folder / "elsewhere")
    path.symlink_to(own_folder / "elsewhere")
    assert records.read(path) == RECORD


def test_a_copy_of_a_record_is_not_counted_twice(path: Path) -> None:
    (path.parent / "copy.json").write_bytes(path.read_bytes())
    found, (said,) = records.read_all(path.parent.parent)
    assert len(found) == 2
    assert said.endswith(f"copy.json: it is the record of cell {RECORD.key}")


def test_the_name_of_a_file_controls_no_terminal(path: Path) -> None:
    (path.parent / "a\x1b[2J\nb.json").write_text("{")
    _, (said,) = records.read_all(path.parent.parent)
    assert r"a\x1b[2J b.json" in said
    assert short(said)


def test_a_folder_that_cannot_be_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidInput, match=r"cannot read x+.*File name too long") as refusal:
        records.read_all(Path("x" * 10_000))
    assert short(str(refusal.value))


NASTY = (
    *(0, -1, 1e99, -1e99, 10**99, 2**70, 1.5, -0.0, "", None, True, [], {}, [[[]]], {"a": 1}),
    *("\x1b[2J", "a\nb", "x" * 10_000, "../../../x", "x(", "none(a=1)", "recipe(epochs=0)"),
    *("{{7*7}}", "<script>alert(1)</script>", r"$\input{/etc/passwd}$", "|", "=1+1"),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    parts = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, part in parts:
        yield (*at, name)
        yield from places(part, (*at, name))


DOCUMENT = encode(RECORD) | {
    "curves": [{"epoch": 1, "clean_accuracy": 0.5, "attack_success_rate": 0.1}],
    "diagnostics": {"isolation": {"precision": 0.9}},
}
COMMANDS = [["table"], ["verify"], ["explain", RECORD.key], ["merge", "r"]]


@settings(FIXED, max_examples=60)
@given(at=st.sampled_from(list(places(DOCUMENT))), value=st.sampled_from(NASTY))
def test_no_record_makes_a_command_crash(own_folder: Path, at: tuple[Any, ...], value: Any) -> None:
    document = copy.deepcopy(DOCUMENT)
    part: Any = document
    for name in at[:-1]:
        part = part[name]
    part[at[-1]] = value
    records.write(own_folder / "r", OTHER)
    path = own_folder / "r/records" / f"{RECORD.key}.json"
    path.write_text(json.dumps(document))
    with contextlib.suppress(InvalidInput):
        records.read(path)
        for command in COMMANDS:
            with (
                contextlib.redirect_stdout(io.StringIO()) as shown,
                contextlib.redirect_stderr(io.StringIO()),
            ):
                assert main([*command, "--results", "r" if command[0] != "merge" else "m"]) in (
                    0,
                    1,
                    2,
                )
            assert "\x1b" not in shown.getvalue()


# Plugins and messages


@pytest.mark.timeout(20)
def test_what_is_no_plugin_file_is_one_line(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(own_folder / "pipe.py")
    (own_folder / "loop.py").symlink_to("loop.py")
    for name in ("pipe.py", "loop.py", "a\0b.py", ".", "x" * 10_000):
        with pytest.raises(InvalidInput, match="is not a Python file") as refusal:
            load_file(Path(name))
        assert short(str(refusal.value))


def test_a_plugin_that_leaves_the_program_is_one_line(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_folder / "script.py").write_text("import sys\nsys.exit(0)\n")
    assert "failed at line 2: SystemExit: 0" in refused(capsys, "list", "--plugin", "script.py")


@settings(FIXED, max_examples=150)
@given(st.text() | st.text("\x1b\x9b\u202e\n\t\0a ", max_size=400).map(lambda text: text * 9))
@example("\udcff" * 999)
@example("a\n\n b\x1b[2J")
def test_a_message_is_one_short_line_that_can_be_seen(text: str) -> None:
    shown = one_line(text)
    assert short(shown)
    assert one_line(shown) == shown
    assert str(InvalidInput(text)) == shown
    shown.encode()


def test_a_long_message_keeps_both_ends_and_a_short_one_all() -> None:
    shown = one_line(f"unknown attack {'x' * 10**7!r}; did you mean 'badnets'?")
    assert shown.startswith("unknown attack 'xxx")
    assert shown.endswith("xxx'; did you mean 'badnets'?")
    assert len(shown) == LONGEST
    assert one_line(shown) == shown
    plain = "naïve — 測試 " + "y" * 900
    assert one_line(plain) == plain
    assert sys.getsizeof(InvalidInput("z" * 10**7).args[0]) < 2 * LONGEST

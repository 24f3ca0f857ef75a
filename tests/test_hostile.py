"""Hostile input: bdbench runs none of it, writes no file elsewhere, and refuses it in one line."""

from __future__ import annotations

import ast
import contextlib
import copy
import difflib
import io
import json
import os
import re
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import builders
import commands
import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import write_gtsrb, write_shard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from bdbench.cells.cell import REGISTRIES, recipe_of
from bdbench.cli import main
from bdbench.datasets import gtsrb, images, parquet
from bdbench.datasets.files import content_of
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import LONGEST, InvalidInput, one_line
from bdbench.models.plugins.files import load_file
from bdbench.models.plugins.spec import Spec
from bdbench.models.training.recipe import Recipe
from bdbench.records import files as records
from bdbench.records.merge import merge
from bdbench.records.record import encode
from bdbench.storage.cache import Cache

FIXED = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
HUGE = "9" * 400
"""An integer that no float can hold."""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with two folders above it, so that a file can be written outside."""
    folder = tmp_path / "outside/inside"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a long text is parsed, compared or read: the time of these grows with it."""
    parse, compare, read = ast.parse, difflib.get_close_matches, Path.read_bytes

    def parse_short(source: Any, *how: Any, **more: Any) -> Any:
        assert "eval" not in (*how, more.get("mode")) or len(source) <= spec.LONGEST
        return parse(source, *how, **more)

    def compare_short(word: str, *how: Any, **more: Any) -> Any:
        assert len(word) <= spec.LONGEST
        return compare(word, *how, **more)

    def read_small(path: Path) -> bytes:
        content = read(path)
        assert path.parent.name != "records" or len(content) <= records.LARGEST_FILE
        return content

    monkeypatch.setattr(ast, "parse", parse_short)
    monkeypatch.setattr(difflib, "get_close_matches", compare_short)
    monkeypatch.setattr(Path, "read_bytes", read_small)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def short(message: str) -> bool:
    return message.isprintable() and len(message) <= LONGEST


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one short line that a command refuses with."""
    line = commands.refused(capsys, *arguments)
    assert short(line.removeprefix("bdbench: "))
    return line


def rejects(match: str, call: Callable[..., object], *arguments: Any) -> None:
    """Check that a call raises `InvalidInput` with one short line."""
    with pytest.raises(InvalidInput, match=match) as refusal:
        call(*arguments)
    assert short(str(refusal.value))


# Specs and names

SPECS = (
    # Code.
    *("badnets(__import__('os').system('touch x'))", "open('x', 'w')", "badnets()()"),
    *("badnets(target=__import__('os').system('touch x'))", "badnets(target=badnets())"),
    *("badnets.__class__", "badnets(target=().__class__)", "badnets[0]", "badnets(**{'a': 1})"),
    *("(lambda: 1)()", "badnets(target=lambda: 1)", "f'{1}'", "badnets(target=f'{1}')"),
    *("badnets(target=[i for i in (1,)])", "badnets(target=(x := 1))", "import os"),
    *("badnets; badnets", "badnets\nbadnets", "badnets(target=1if 1else 2)"),
    # Unbounded work and memory.
    *("badnets(target=9**9**9)", "badnets(pattern='x' * 10**10)", "(" * 10_000 + ")" * 10_000),
    *("(" * 450 + ")" * 450, "badnets(target=" + "[" * 450 + "]" * 450 + ")"),
    *("badnets(target=" + "-" * 900 + "1)", "x" * 10_000_000),
    f"badnets(target={'9' * 10_000_000})",
    # Numbers that are out of range.
    *(f"badnets(target={HUGE})", f"badnets(poisoning_rate={HUGE})"),
    *("badnets(poisoning_rate=1e999)", "badnets(target=1j)"),
    # Texts that are neither names nor literals.
    *(r"badnets(pattern='\d')", "badnets(pattern='\0')", ""),
)
NAMES = (
    *("../../x", "a/b", "/etc/passwd", "a\0b", "x" * 10_000, "x" * 1_000_000),
    *("\x1b[2J", "\u202ebadnets", "\udcff"),
)
"""Paths, long names, and characters that control a terminal or are none."""
BUILD: dict[str, Callable[[str], object]] = {
    **{axis: registry.swept for axis, registry in REGISTRIES.items()},
    "recipe": recipe_of,
}


@pytest.mark.parametrize("axis", BUILD)
def test_a_hostile_spec_is_refused_and_never_run(axis: str, own_folder: Path) -> None:
    for text in (*SPECS, *NAMES):
        rejects(".", BUILD[axis], text)
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
        assert all(map(str.isidentifier, (found.name, *found.fields)))


LITERALS = (
    *("0", "-1", "1e-320", "1e308", "1e999", "-1e999", HUGE, "9" * 18, "True", "None", "1j"),
    *("''", "'x'", "'../../x'", r"'\x00'", "b''", "...", "'badnets('", "[]", "{}", "{1: {}}"),
    *("()", "(1,)", "('a',)", "((),)", "(-1,)", "(1e999,)", f"({HUGE},)", "(1, 2, 3)"),
    "(1.0, 2.0, 1e999)",
)


def test_any_value_of_any_field_is_refused_or_can_be_written_and_read_again() -> None:
    for registry in REGISTRIES.values():
        names = ["wrn16_1"] if registry.kind == "model" else registry.names()
        for name in names:
            for field, literal in product(spec.fields_of(registry.factory(name)), LITERALS):
                try:
                    registry.build(given := f"{name}({field}={literal})")
                    canonical = registry.canonical(given)
                except InvalidInput:
                    continue
                assert registry.canonical(canonical) == canonical
    for field, literal in product(spec.fields_of(Recipe), LITERALS):
        with contextlib.suppress(InvalidInput):
            recipe_of(f"recipe({field}={literal})")


@pytest.mark.parametrize(
    "command",
    [
        *("run", "describe", "list", "table", "figure", "data prepare", "data preview"),
        "data preview none --dataset",
        *(f"run --dry-run --{axis}" for axis in BUILD),
    ],
)
def test_a_command_takes_no_name_for_a_path(
    command: str, own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (*NAMES, SPECS[0]):
        refused(capsys, *command.split(), name)
    assert files(own_folder.parent) == []


def test_a_command_takes_no_key_for_a_path(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_folder.parent / "secret.json").write_text("{}")
    (own_folder / "results/quick/records").mkdir(parents=True)
    for key in ("../../../../secret", "/etc/passwd", "*", "a\0b", "x" * 10_000, "\x1b[2J", ""):
        assert "no record" in refused(capsys, "explain", key)


@pytest.mark.parametrize(
    "key", ["../x", "a/b", "/x", "", "a\0b", "0" * 15, "0123456789ABCDEF", "*"]
)
def test_no_key_leads_out_of_the_cache(own_folder: Path, key: str) -> None:
    cache = Cache(own_folder / "cache")
    assert cache.get("embeddings", {"cell": key}) is None
    cache.put("embeddings", {"cell": key}, {"mask": np.array([True])})
    assert {path.parent for path in files(own_folder.parent)} == {
        cache.root,
        cache.root / "embeddings",
    }


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize("put", [Path.mkdir, os.mkfifo])
def test_embeddings_with_a_folder_or_a_pipe_in_their_place_are_missing(
    own_folder: Path, put: Callable[[Path], None], suffix: str
) -> None:
    cache, key = Cache(own_folder), {"cell": "0123456789abcdef"}
    cache.put("embeddings", key, {"mask": np.array([True])})
    path = next((own_folder / "embeddings").glob(f"*.{suffix}"))
    path.unlink()
    put(path)
    assert cache.get("embeddings", key) is None
    if put is os.mkfifo:
        cache.put("embeddings", key, {"mask": np.array([True])})
        assert cache.get("embeddings", key) is not None


# Images, Parquet and GTSRB


def png(width: int = 8, height: int = 8, extra: bytes = b"") -> bytes:
    """A PNG of 8 x 8 black pixels that claims another size and has a further chunk."""
    content = black("PNG")
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return content[:8] + chunk(b"IHDR", size + content[24:29]) + extra + content[33:]


def black(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    return file.getvalue()


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
    """Fail above 8 MB in Python's memory. Pixels are in Pillow's, so a test sees to those."""
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
    rejects("x: image", images.decode, BOMBS[name], 8, None, "x")


def test_an_image_without_a_bomb_is_decoded() -> None:
    assert images.decode(png(), 8, None, "x") == bytes(3 * 8 * 8)


def test_a_command_names_the_row_of_a_bomb(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        write_shard(own_folder / f"cifar10/{split}-0.parquet", [png(100_000, 100_000)])
    said = refused(capsys, "data", "prepare", "cifar10", "--data", ".")
    assert "cifar10/train-0.parquet row 0: image is larger than 10000x10000 pixels" in said


def varint(number: int) -> bytes:
    """An integer of Parquet's metadata: zigzag, seven bits to a byte."""
    number *= 2
    written = b""
    while number > 127:
        written += bytes([number % 128 | 128])
        number //= 128
    return written + bytes([number])


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("rows", [0, 99, 101, 2**40, 2**62])
def test_a_wrong_number_of_rows_is_refused(own_folder: Path, rows: int) -> None:
    path = own_folder / "train-0.parquet"
    write_shard(path, [png()] * 100)
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    body, footer = content[: -8 - length], content[-8 - length : -8]
    footer = footer.replace(varint(100), varint(rows), 1)
    path.write_bytes(body + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    assert pq.ParquetFile(path).metadata.num_rows == rows
    rejects("rows are missing", parquet.read, own_folder, "train", 10, 8, None)


def test_a_column_that_would_fill_the_memory_is_never_read(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own_folder / "train-0.parquet"
    monkeypatch.setattr(parquet, "LARGEST_CHUNK", 1_000_000)
    write_shard(path, [bytes(1_000_000)], compression="zstd")
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("it is read"))
    complaint = r": [\d,]+ bytes would expand to 1,000,\d\d\d"
    rejects(complaint, parquet.read, own_folder, "train", 10, 8, None)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        *((f"{way}.ppm", "cannot read") for way in ("../../../secret", "/x", "a\0b", "x" * 10_000)),
        ("picture.png", "is not a file"),
    ],
    ids=["parent", "absolute", "NUL", "ten kilobytes", "pipe that is not hashed"],
)
def test_the_table_of_gtsrb_names_no_file_elsewhere(
    name: str, complaint: str, own_folder: Path
) -> None:
    pictures = write_gtsrb(own_folder, [black("PPM")], [name])
    (own_folder / "secret.ppm").write_bytes(black("PPM"))
    os.mkfifo(pictures / "picture.png")
    rejects(complaint, gtsrb.locate(own_folder, "", "Training").decode)


@pytest.mark.timeout(20)
def test_a_pipe_among_the_images_is_not_waited_for(own_folder: Path) -> None:
    os.mkfifo(write_gtsrb(own_folder, [black("PPM")]) / "00001.ppm")
    rejects(r"00001\.ppm is not a file", content_of, gtsrb.locate(own_folder, "", "Training"))


# Records

RECORD = builders.make_record("cbd", "badnets", 850, 13)
OTHER = builders.make_record("none", "badnets", 900, 990)


@pytest.fixture
def path(own_folder: Path) -> Path:
    """The file of `RECORD`, beside that of `OTHER`."""
    records.write(own_folder / "r", OTHER)
    return records.write(own_folder / "r", RECORD)


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


ALTERED: dict[str, dict[str, Any]] = {
    "rather deep": {"diagnostics": {"a": nested(60)}},
    "10 MB key": {"x" * 10**7: 1},
    "10 MB flag": {"flags": ["\x1b" * 10**6]},
    "20 MB": {"diagnostics": {"a": "x" * 2 * 10**7}},
    "other key": {"key": "f" * 16},
    "path as key": {"key": "../../../../x"},
    "escape sequence": {"labels": RECORD.labels.as_dict() | {"attack": "\x1b[2J"}},
    "long label": {"labels": RECORD.labels.as_dict() | {"attack": "x" * 10_000}},
    "number as checksum": {"checksum": 0},
}
"""Fields by which the record is no longer one."""
REPLACED = {
    "deep": ("10.5", "[" * 10**5 + "]" * 10**5),
    "duplicate": ('"seed": 0', '"seed": 0, "seed": 0'),
    "1e999": ("10.5", "1e999"),
    "-1e999": ("10.5", "-1e999"),
    "NaN": ("10.5", "NaN"),
    "-Infinity": ("10.5", "-Infinity"),
    "10,000 digits": ("1024", "9" * 10_000),
    "400 digits": ("1024", HUGE),
    "negative seconds": ('"fit": 60.0', '"fit": -60.0'),
    "true seconds": ('"fit": 60.0', '"fit": true'),
    "no object": ("{", "[{"),
}
"""A piece of the text of a record, and what takes its place."""


def altered(path: Path, kind: str) -> str:
    """The text of a record without its checksum, changed as `kind` says."""
    document = json.loads(path.read_bytes())
    del document["checksum"]
    text = json.dumps(document | ALTERED.get(kind, {}))
    old, new = REPLACED.get(kind, ("", ""))
    assert old in text
    text = text.replace(old, new, 1) if old else text
    return f"{text}]" if kind == "no object" else text


@pytest.mark.parametrize("kind", [*ALTERED, *REPLACED])
def test_a_table_names_a_hostile_record_and_leaves_it_out(
    own_folder: Path, path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(altered(path, kind))
    before = files(own_folder.parent)
    assert main(["table", "--results", "r"]) == 1
    said = capsys.readouterr().err.removesuffix("\n")
    assert str(path.relative_to(own_folder)) in said
    assert said.isprintable()
    assert len(said) < LONGEST + 50
    made_here = {*files(own_folder.parent)} - {*before}
    assert all(each.is_relative_to(own_folder / "r/tables") for each in made_here)
    assert records.read_all(own_folder / "r")[0] == [OTHER]


def test_a_merge_writes_no_record_elsewhere(own_folder: Path, path: Path) -> None:
    path.write_text(altered(path, "path as key"))
    merge([own_folder / "r"], own_folder / "into")
    assert files(own_folder / "into") == [own_folder / f"into/records/{OTHER.key}.json"]
    assert all(each.is_relative_to(own_folder) for each in files(own_folder.parent))


def test_a_negative_zero_is_read_as_zero(path: Path) -> None:
    text = altered(path, "")
    assert '"undefended": 0.0' in text
    path.write_text(text.replace('"undefended": 0.0', '"undefended": -0.0'))
    assert records.read(path) == RECORD


def replaced_by(make: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda path: (path.unlink(), make(path))


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_suffix(".pipe"))
    path.symlink_to(path.with_suffix(".pipe"))


IN_THE_WAY: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (replaced_by(Path.mkdir), "Is a directory"),
    "pipe": (replaced_by(os.mkfifo), "it is not a file"),
    "link to a pipe": (replaced_by(link_to_pipe), "it is not a file"),
    "link to a device": (replaced_by(lambda p: p.symlink_to("/dev/zero")), "it is not a file"),
    "link to nothing": (replaced_by(lambda p: p.symlink_to("nothing")), "No such file"),
    "link to itself": (replaced_by(lambda p: p.symlink_to(p.name)), "Too many levels"),
    "a terabyte of zeros": (lambda p: os.truncate(p, 2**40), "16,777,216 bytes"),
    "copy of another": (
        lambda p: p.write_bytes(p.with_stem(OTHER.key).read_bytes()),
        f"it is the record of cell {OTHER.key}",
    ),
}
"""What stands in the place of a record, and a part of the complaint about it."""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_what_is_in_the_place_of_a_record_is_named_in_one_line(path: Path, kind: str) -> None:
    put, complaint = IN_THE_WAY[kind]
    put(path)
    found, (said,) = records.read_all(path.parent.parent)
    assert found == [OTHER]
    assert re.match(f"(damaged|cannot read) record {path}: .*{complaint}", said)
    assert short(said)


def test_an_unreadable_record_is_named_in_one_line(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without taking the permission away, as the tests may run as the superuser."""
    read_bytes = Path.read_bytes

    def guarded(self: Path) -> bytes:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    said = [f"cannot read record {path}: Permission denied"]
    assert records.read_all(path.parent.parent) == ([OTHER], said)


@pytest.mark.parametrize(
    "arguments",
    [
        ["table", "--results=results/a"],
        ["verify", "--results=results/a"],
        ["explain", "aa", "--results=results/a"],
        ["explain", "aa"],
        ["merge", "results/a", "--results=b"],
        ["table", "--results=b", "--against=results/a"],
    ],
)
def test_an_unreadable_folder_of_records_is_not_empty(
    arguments: list[str],
    own_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    records.write(Path("b"), RECORD)
    Path("results/a/records").mkdir(parents=True)
    scandir = os.scandir

    def guarded(folder: Any = ".") -> Any:
        if str(folder) == "results/a/records":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    said = refused(capsys, *arguments)
    assert said == "bdbench: cannot read results/a/records: Permission denied"


def test_a_link_to_a_record_is_read(own_folder: Path, path: Path) -> None:
    path.rename(own_folder / "elsewhere")
    path.symlink_to(own_folder / "elsewhere")
    assert records.read(path) == RECORD


def test_the_name_of_a_file_controls_no_terminal(path: Path) -> None:
    (path.parent / "a\x1b[2J\nb.json").write_text("{")
    _, (said,) = records.read_all(path.parent.parent)
    assert r"a\x1b[2J b.json" in said
    assert short(said)


def test_a_folder_with_too_long_a_name_is_refused_in_one_line() -> None:
    rejects("cannot read x+.*File name too long", records.read_all, Path("x" * 10_000))


NASTY = (
    *(0, -1, 1e99, -1e99, 10**99, 2**70, 1.5, -0.0, "", None, True, [], {}, [[[]]], {"a": 1}),
    *("\x1b[2J", "a\nb", "x" * 10_000, "../../../x", "x(", "none(a=1)", "recipe(epochs=0)"),
    *("{{7*7}}", "<script>alert(1)</script>", r"$\input{/etc/passwd}$", "|", "=1+1"),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a document."""
    parts = enumerate(value) if isinstance(value, list) else ()
    for name, part in value.items() if isinstance(value, dict) else parts:
        yield (*at, name)
        yield from places(part, (*at, name))


DOCUMENT = encode(RECORD) | {
    "curves": [{"epoch": 1, "clean_accuracy": 0.5, "attack_success_rate": 0.1}],
    "diagnostics": {"isolation": {"precision": 0.9}},
}
COMMANDS = (
    *(["table", "--results=r"], ["verify", "--results=r"], ["merge", "r", "--results=m"]),
    ["explain", RECORD.key, "--results=r"],
)


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
            shown, errors = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(errors):
                assert main(command) in (0, 1, 2)
            assert "\x1b" not in shown.getvalue()


ODD_SPECS = (
    *(("attack", text) for text in ("adaptive", "badnets(poisoning_rate=[1])", "{{7*7}}")),
    *(("dataset", f"cifar10(train_images={value})") for value in ("'all'", "(1, 2)")),
    *(("model", ""), ("recipe", "a recipe"), ("recipe", "recipe(epochs='many')")),
)


@pytest.mark.parametrize(("axis", "text"), ODD_SPECS)
def test_a_spec_that_no_plugin_here_reads_costs_no_table(
    own_folder: Path, axis: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = builders.make_record("cbd", "badnets", 850, 13)
    cell = whole.cell.with_(dataset="cifar10", attack="badnets", defense="cbd")
    odd = replace(whole, cell=cell.with_(**{axis: text}), labels=whole.labels.with_(**{axis: text}))
    records.write(own_folder / "r", odd)
    records.write(own_folder / "r", OTHER)
    for command in ("table", "table --latex", "table 1", "verify", "report"):
        main([*command.split(), "--results", "r"])
        assert capsys.readouterr().err == "", command


# Plugins and messages


@pytest.mark.timeout(20)
def test_a_plugin_that_is_no_file_is_refused_in_one_line(own_folder: Path) -> None:
    os.mkfifo(own_folder / "pipe.py")
    (own_folder / "loop.py").symlink_to("loop.py")
    for name in ("pipe.py", "loop.py", "."):
        rejects("is not a Python file", load_file, Path(name))
    for name in ("a\0b.py", "x" * 10_000):
        rejects("there is no plugin file", load_file, Path(name))


def test_a_plugin_that_leaves_the_program_is_refused_in_one_line(
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

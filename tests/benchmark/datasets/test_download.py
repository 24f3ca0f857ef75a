"""Downloads from a server on this machine: complete files with the right checksum, or one line."""

from __future__ import annotations

import hashlib
import io
import os
import pty
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bdbench.cli import main, transfer
from bdbench.datasets import download
from bdbench.datasets.archives import Archive, unpack
from bdbench.datasets.cifar10 import CIFAR10
from bdbench.datasets.cifar100 import CIFAR100
from bdbench.datasets.gtsrb import GTSRB
from bdbench.datasets.imagenette import CLASSES as FOLDERS
from bdbench.datasets.imagenette import Imagenette
from bdbench.models.plugins.errors import InvalidInput
from bdbench.storage.atomic import Unusable
from bdbench.storage.locks import locked

CONTENT = bytes(range(256)) * 4096
NAME = "cifar-10-python.tar.gz"


@dataclass
class Server:
    """What a server has, and how it behaves.

    files: by path
    cuts: after how many bytes the bodies of the next answers are cut
    statuses: those of the next answers
    ranges: whether it supports range requests
    asked: the paths of all requests
    begun: the first byte of each answer
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    asked: Counter[str] = field(default_factory=Counter)
    begun: list[int] = field(default_factory=list)
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked[request.path] += 1
        content = self.files.get(request.path)
        status = self.statuses.pop(0) if self.statuses else 200 if content is not None else 404
        if content is None or status != 200:
            request.send_error(status)
            return
        wanted = request.headers.get("Range", "")
        start = int(wanted[6:-1]) if wanted and self.ranges else 0
        if start >= len(content):
            request.send_error(416)
            return
        self.begun.append(start)
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        end = self.cuts.pop(0) if self.cuts else len(content)
        request.wfile.write(content[start : max(start, end)])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    served = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, *arguments: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{running.server_port}"
    threading.Thread(target=running.serve_forever, args=[0.01], daemon=True).start()
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.delenv(download.MIRROR, raising=False)
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    yield served
    running.shutdown()
    running.server_close()


class Silent:
    """Records the calls."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.reasons: list[str] = []

    def progress(self, name: str, done: int, total: int | None) -> None:
        self.done.append(done)

    def retrying(self, name: str, reason: str, pause: float) -> None:
        self.reasons.append(reason)


def archive(
    server: Server, content: bytes = CONTENT, name: str = "x.bin", kind: str = "sha256"
) -> Archive:
    """An archive that the server has."""
    server.files[f"/{name}"] = content
    return Archive(f"{server.url}/{name}", f"{kind}:{hashlib.new(kind, content).hexdigest()}")


def packed(files: dict[str, bytes], kind: str = "tar.gz") -> bytes:
    made = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(made, "w") as zipped:
            for name, content in files.items():
                zipped.writestr(name, content)
    else:
        with tarfile.open(fileobj=made, mode="w:gz") as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def fetched(server: Server, wanted: Archive, folder: Path) -> tuple[bytes, Silent]:
    watcher = Silent()
    return download.fetch(wanted, wanted.url, folder, watcher).read_bytes(), watcher


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_the_right_file_is_downloaded_once(server: Server, tmp_path: Path, kind: str) -> None:
    wanted = archive(server, kind=kind)
    content, watcher = fetched(server, wanted, tmp_path)
    assert content == CONTENT
    assert watcher.done[-1] == len(CONTENT)
    assert watcher.done == sorted(watcher.done)
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]
    assert fetched(server, wanted, tmp_path)[0] == CONTENT
    assert server.asked.total() == 1


def test_a_lost_connection_resumes(server: Server, tmp_path: Path) -> None:
    wanted = archive(server)
    server.cuts = [300_000, 700_000]
    content, watcher = fetched(server, wanted, tmp_path)
    assert content == CONTENT
    chunk = download.CHUNK
    assert server.begun == [0, 300_000 // chunk * chunk, 700_000 // chunk * chunk]
    assert len(watcher.reasons) == 2


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    wanted = archive(server)
    server.cuts, server.ranges = [300_000], False
    assert fetched(server, wanted, tmp_path)[0] == CONTENT
    assert server.begun == [0, 0]


def test_the_next_command_resumes(server: Server, tmp_path: Path) -> None:
    wanted = archive(server)
    server.cuts = [100_000, 200_000, 300_000, 400_000]
    with pytest.raises(InvalidInput, match=r"cannot download .*; name another address with --url"):
        fetched(server, wanted, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin.part"]
    assert fetched(server, wanted, tmp_path)[0] == CONTENT
    assert 400_000 - download.CHUNK < server.begun[-1] <= 400_000


@pytest.mark.parametrize(
    "rest", [b"another file" * 1000, CONTENT + b"more"], ids=["other", "longer"]
)
def test_a_part_of_another_file_is_discarded(server: Server, tmp_path: Path, rest: bytes) -> None:
    (tmp_path / "x.bin.part").write_bytes(rest)
    assert fetched(server, archive(server), tmp_path)[0] == CONTENT


def test_a_part_that_is_whole_is_not_sent_again(server: Server, tmp_path: Path) -> None:
    """A command that was killed before it renamed the file leaves one."""
    (tmp_path / "x.bin.part").write_bytes(CONTENT)
    assert fetched(server, archive(server), tmp_path)[0] == CONTENT
    assert server.asked.total() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]


def test_a_server_that_is_busy_is_asked_again(server: Server, tmp_path: Path) -> None:
    wanted = archive(server)
    server.statuses = [503, 429]
    content, watcher = fetched(server, wanted, tmp_path)
    assert content == CONTENT
    assert [reason[:3] for reason in watcher.reasons] == ["503", "429"]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_file_that_is_not_there_is_asked_for_once(
    server: Server, tmp_path: Path, status: int
) -> None:
    wanted = archive(server)
    server.statuses = [status]
    with pytest.raises(InvalidInput, match=f"cannot download .*x.bin: {status} "):
        fetched(server, wanted, tmp_path)
    assert server.asked.total() == 1


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    wanted = archive(server)
    server.files["/x.bin"] = CONTENT[:-1] + b"x"
    with pytest.raises(InvalidInput, match=r"is not the official x\.bin: its sha256 differs"):
        fetched(server, wanted, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert server.asked.total() == 1


def test_no_network_is_one_line(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        download.fetch(archive(server), "http://127.0.0.1:9/x.bin", tmp_path, watcher := Silent())
    assert str(caught.value).startswith(
        "cannot download http://127.0.0.1:9/x.bin: Connection refused; name another address"
    )
    assert len(watcher.reasons) == 3


def test_a_host_that_is_not_known_is_one_line(server: Server, tmp_path: Path) -> None:
    address = "http://host.invalid/x.bin"
    with pytest.raises(InvalidInput) as caught:
        download.fetch(archive(server), address, tmp_path, Silent())
    assert "urllib3" not in str(caught.value)
    assert "HTTPConnection" not in str(caught.value)


def test_a_full_disk_is_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = archive(server)
    usage = download.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(Unusable, match=r"has 10\.0 kB free but needs 3\.1 MB"):
        fetched(server, wanted, tmp_path)
    monkeypatch.undo()

    def fail(*arguments: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(download._Stream, "write", fail)
    with pytest.raises(Unusable, match=f"cannot write in {tmp_path}: No space left on device"):
        fetched(server, wanted, tmp_path)
    assert not (tmp_path / "x.bin").exists()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives_are_unpacked(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"x.{kind}"
    file.write_bytes(packed({"a/b.txt": b"1", "c.txt": b"2"}, kind))
    unpack(file, tmp_path / "out")
    assert (tmp_path / "out/a/b.txt").read_bytes() == b"1"
    assert (tmp_path / "out/c.txt").read_bytes() == b"2"


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "..\\x"])
def test_no_path_leaves_the_folder_of_an_archive(tmp_path: Path, kind: str, name: str) -> None:
    file = tmp_path / f"x.{kind}"
    file.write_bytes(packed({"fine": b"", name: b"bad"}, kind))
    with pytest.raises(InvalidInput, match="the path leaves the folder"):
        unpack(file, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("x")] == []


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_no_link_or_device_is_unpacked(tmp_path: Path, kind: bytes) -> None:
    entry = tarfile.TarInfo("link")
    entry.type, entry.linkname = kind, "../target"
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(entry)
    with pytest.raises(InvalidInput, match="a link or device"):
        unpack(tmp_path / "x.tar", tmp_path / "out")
    linked = zipfile.ZipInfo("link")
    linked.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as zipped:
        zipped.writestr(linked, "../target")
    with pytest.raises(InvalidInput, match="a link or device"):
        unpack(tmp_path / "x.zip", tmp_path / "out")


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x.tgz"])
def test_a_damaged_archive_is_one_line(tmp_path: Path, name: str) -> None:
    whole = packed({"a": os.urandom(50_000)}, "zip" if name == "x.zip" else "tar.gz")
    for content in (b"", b"no archive", whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidInput, match=r"not a readable archive|cannot write") as caught:
            unpack(tmp_path / name, tmp_path / "out")
        assert "\n" not in str(caught.value)


def official(
    server: Server, monkeypatch: pytest.MonkeyPatch, contents: dict[type, list[bytes]]
) -> None:
    """The server has these archives, and the sources know their checksums."""
    for source, parts in contents.items():
        monkeypatch.setattr(
            source,
            "archives",
            tuple(
                archive(server, content, known.name)
                for known, content in zip(source.archives, parts, strict=True)
            ),
        )


BATCHES = ("batches.meta", *(f"data_batch_{n}" for n in range(1, 6)), "test_batch")
CIFAR = packed({f"cifar-10-batches-py/{name}": b"batch" for name in BATCHES})
FRAMES = {f"GTSRB/Final_Training/Images/{label:05d}/00000_00000.ppm": b"" for label in range(43)}
SIGNS = [
    packed({**FRAMES, "GTSRB/R": b"1"}, "zip"),
    packed({"GTSRB/Final_Test/Images/00000.ppm": b"", "GTSRB/R": b"2"}, "zip"),
    packed({"GT-final_test.csv": b"Filename;ClassId\n00000.ppm;0\n"}, "zip"),
]
PHOTOS = packed(
    {
        f"imagenette2-320/{split}/{folder}/x.JPEG": b""
        for split in ("train", "val")
        for folder in FOLDERS
    }
)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("cifar10", "official archive in {}/cifar10/cifar-10-batches-py"),
        ("cifar100", "official archive in {}/cifar100/cifar-100-python"),
        ("gtsrb", "official archive in {}/gtsrb"),
        ("imagenette", "class folders in {}/imagenette/imagenette2-320"),
    ],
)
def test_what_was_downloaded_is_found(
    name: str,
    found: str,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    cache_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hundred = packed({f"cifar-100-python/{part}": b"" for part in ("meta", "train", "test")})
    contents = {CIFAR10: [CIFAR], CIFAR100: [hundred], GTSRB: SIGNS, Imagenette: [PHOTOS]}
    official(server, monkeypatch, contents)
    assert main(["data", "get", name]) == 0
    where = found.format(cache_folder / "data")
    assert capsys.readouterr().out.splitlines()[-1] == f"downloaded {name}: {where}"
    assert [path.name for path in (cache_folder / "data").iterdir()] == [name]
    asked = server.asked.total()
    assert main(["data", "get", name]) == 0
    assert capsys.readouterr().out == f"{name} is already there: {where}; nothing to download\n"
    assert server.asked.total() == asked
    assert main(["data", "ls"]) == 0
    assert f"{name:<16} {where}\n" in capsys.readouterr().out
    assert main(["cache", "ls"]) == 0


@pytest.mark.parametrize(("option", "variable"), [(True, False), (False, True), (True, True)])
def test_a_mirror_has_the_same_files_below_another_address(
    option: bool,
    variable: bool,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    official(server, monkeypatch, {GTSRB: SIGNS})
    server.files = {f"/mirror{path}": content for path, content in server.files.items()}
    if variable:
        monkeypatch.setenv(download.MIRROR, f"{server.url}/{'nothing' if option else 'mirror'}/")
    url = ["--url", f"{server.url}/mirror"] if option else []
    assert main(["data", "get", "gtsrb", "--data", str(tmp_path / "data"), *url]) == 0
    assert all(path.startswith("/mirror/GTSRB_Final") for path in server.asked)
    table = tmp_path / "data/gtsrb/GT-final_test.csv"
    assert table.read_bytes().startswith(b"Filename")


def test_the_url_of_one_file_may_have_any_name(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    official(server, monkeypatch, {CIFAR10: [CIFAR]})
    server.files = {"/any?token=secret": CIFAR, f"/folder/{NAME}": CIFAR}
    for number, url in enumerate((f"{server.url}/any?token=secret", f"{server.url}/folder/")):
        folder = str(tmp_path / str(number))
        assert main(["data", "get", "cifar10", "--data", folder, "--url", url]) == 0
    assert server.asked == {"/any?token=secret": 1, f"/folder/{NAME}": 1}


def test_a_mirror_cannot_change_the_data(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    official(server, monkeypatch, {CIFAR10: [CIFAR]})
    server.files[f"/{NAME}"] = packed({"cifar-10-batches-py/data_batch_1": b"another"})
    url = server.url.replace("http://", "http://user:secret@")
    command = ["data", "get", "cifar10", "--data", str(tmp_path), "--url", f"{url}/"]
    assert main(command) == 2
    said = capsys.readouterr()
    assert f"{server.url}/{NAME} is not the official {NAME}" in said.err
    assert "secret" not in said.out + said.err
    assert list(tmp_path.iterdir()) == []


def test_downloaded_archives_are_kept_for_the_next_command(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    official(server, monkeypatch, {GTSRB: SIGNS})
    last = server.files.pop("/GTSRB_Final_Test_GT.zip")
    command = ["data", "get", "gtsrb", "--data", str(tmp_path)]
    assert main(command) == 2
    assert [path.name for path in tmp_path.iterdir()] == [".gtsrb.download"]
    server.files["/GTSRB_Final_Test_GT.zip"] = last
    assert main(command) == 0
    assert server.asked["/GTSRB_Final_Training_Images.zip"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["gtsrb"]


def test_the_smaller_gtsrb_does_not_count(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    official(server, monkeypatch, {GTSRB: SIGNS})
    (tmp_path / "GTSRB/Training").mkdir(parents=True)
    assert main(["data", "get", "gtsrb", "--data", str(tmp_path)]) == 0
    assert f"official archive in {tmp_path}/gtsrb\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("gtsrb", "GTSRB/Final_Training/Images/00000/00000_00000.ppm"),
        ("imagenette", "imagenette2-160/train/n01440764/a.JPEG"),
    ],
)
def test_a_part_of_a_data_set_is_not_already_there(
    name: str, there: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = tmp_path / name / there
    part.parent.mkdir(parents=True)
    part.write_bytes(b"part")
    assert main(["data", "get", name, "--data", str(tmp_path)]) == 2
    assert (
        f"refusing to overwrite {tmp_path / name}, which is not empty: move or remove it"
        in capsys.readouterr().err
    )


def test_nothing_is_overwritten(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    official(server, monkeypatch, {CIFAR10: [CIFAR]})
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10/thesis.tex").write_text("mine")
    assert main(["data", "get", "cifar10", "--data", str(tmp_path)]) == 2
    assert (
        f"refusing to overwrite {tmp_path}/cifar10, which is not empty: move"
        in capsys.readouterr().err
    )
    assert server.asked.total() == 0
    assert (tmp_path / "cifar10/thesis.tex").read_text() == "mine"


def test_two_commands_do_not_download_the_same(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    official(server, monkeypatch, {CIFAR10: [CIFAR]})
    staging = tmp_path / ".cifar10.download"
    staging.mkdir()
    with locked(staging / "lock"):
        assert main(["data", "get", "cifar10", "--data", str(tmp_path)]) == 2
    assert "another command is downloading cifar10" in capsys.readouterr().err
    assert server.asked.total() == 0


def test_lines_show_the_progress(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = packed({"cifar-10-batches-py/data_batch_1": os.urandom(6_000_000)})
    official(server, monkeypatch, {CIFAR10: [content]})
    assert main(["data", "get", "cifar10", "--data", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " of 6.0 MB" in line]
    assert len(lines) == 10
    assert lines[-1] == f"{NAME}: 6.0 MB of 6.0 MB"


MINE = """
from dataclasses import dataclass
from typing import ClassVar
from bdbench.datasets import register
from bdbench.datasets.archives import Archive
from bdbench.datasets.cifar10 import CIFAR10

@register("mine")
@dataclass(frozen=True)
class Mine(CIFAR10):
    name: ClassVar[str] = "mine"
    archives: ClassVar[tuple[Archive, ...]] = (Archive("{url}", "{checksum}"),)
"""


def test_a_plugin_may_have_archives(
    server: Server,
    tmp_path: Path,
    unregistered: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = archive(server, CIFAR, NAME)
    plugin = tmp_path / "mine.py"
    plugin.write_text(MINE.format(url=known.url, checksum=known.checksum))
    given = ["--plugin", str(plugin)]
    assert main(["data", "ls", *given]) == 0
    assert (
        "mine             not found; `bdbench data get mine` downloads it\n"
        in capsys.readouterr().out
    )
    assert main(["data", "get", "mine", *given]) == 0
    assert main(["data", "prepare", "mine", *given]) == 2
    assert "is not the official file: its md5 differs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cifar"], "unknown data set 'cifar'; did you mean 'cifar10'?"),
        (
            ["toy"],
            "data set toy needs no files (generated); choose one of cifar10, cifar100, gtsrb",
        ),
        (["digits"], "data set digits needs no files (ships with scikit-learn); choose"),
        (
            ["imagenet_subset"],
            "data set imagenet_subset has no public download; choose one of cifar10",
        ),
        (["folder"], "data set folder has no public download"),
        (["cifar10(train_images=5)"], "train_images of cifar10 must be at least 10"),
        (["cifar10(size=5)"], "data set 'cifar10' has no field 'size'"),
        (["cifar10", "--url", "ftp://host/x"], "--url must begin with http://HOST or https://HOST"),
        (["cifar10", "--url", "/data/x.tar.gz"], "--url must begin with http://HOST"),
        (["cifar10", "--url", "http://"], "--url must begin with http://HOST"),
        (["cifar10", "--url", "http://[x"], "--url must begin with http://HOST"),
        (["cifar10", "--url", "http://host:port/"], "--url must begin with http://HOST"),
        (["cifar10", "--url", "http://host/\x1b[2J"], "--url must begin with http://HOST"),
        (["cifar10", "--plugin", "none.py"], "there is no plugin file 'none.py'"),
        (["cifar10", "--data", "/proc/none"], "cannot write in /proc/none"),
        ([], "Missing argument 'NAME'"),
        (["cifar10", "gtsrb"], "unexpected extra argument"),
    ],
)
def test_wrong_input_is_one_line_and_requests_nothing(
    arguments: list[str],
    said: str,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    cache_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(download.MIRROR, server.url)
    assert main(["data", "get", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert server.asked.total() == 0
    assert not (cache_folder / "data").exists()


def test_a_wrong_mirror_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(download.MIRROR, "mirror.example")
    assert main(["data", "get", "cifar10"]) == 2
    assert f"{download.MIRROR} must begin with http://HOST" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "gtsrb", "imagenette"])
def test_a_missing_data_set_names_the_command(
    name: str, own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["data", "prepare", name], ["run", "--dataset", name, "--in-process"]):
        assert main(command) == 2
        assert f"; download it with `bdbench data get {name}`, or name" in capsys.readouterr().err


def test_a_terminal_is_asked_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(download.MIRROR, server.url)
    command = [sys.executable, "-m", "bdbench", "data", "prepare", "cifar10"]
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as asked:
        os.close(theirs)
        said = read_until(ours, "[y/N]: ")
        os.write(ours, b"y\n")
        said += read_until(ours, None)
    os.close(ours)
    assert said.count("data set cifar10 was not found; download it to") == 1
    # The server has no such file.
    assert server.asked.total() == 1
    assert "404 Not Found" in said
    assert asked.returncode == 2


def read_until(terminal: int, end: str | None) -> str:
    """The output of a terminal up to `end`, or until it is closed."""
    said = ""
    while end is None or not said.endswith(end):
        try:
            said += os.read(terminal, 4096).decode()
        except OSError:
            break
    return said


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_downloaded_unasked(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(transfer, "_at_terminal", lambda: terminal)
    monkeypatch.setattr(transfer.click, "confirm", lambda text, default: asked.append(text))
    monkeypatch.setattr(transfer, "get", None)
    assert main(["data", "prepare", "cifar10"]) == 2
    assert main(["run", "--dataset", "cifar10", "--dataset", "gtsrb", "--in-process"]) == 2
    names = [text.split()[2] for text in asked]
    assert names == (["cifar10", "cifar10", "gtsrb"] if terminal else [])
    assert "bdbench data get cifar10" in capsys.readouterr().err

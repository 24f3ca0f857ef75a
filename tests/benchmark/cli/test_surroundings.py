"""The surroundings of a command: terminals, home folders, disks, settings of other programs. It
works, or names the problem in one line."""

from __future__ import annotations

import errno
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import Mock

import click
import matplotlib
import pytest
from commands import refused

from bdbench.cli import main
from bdbench.cli.group import cli
from bdbench.cli.options import UserPath
from bdbench.storage.folders import cache_root, roots

pytestmark = pytest.mark.usefixtures("own_folder")

TOY = "toy(train_images=100, test_images=50, image_size=16)"


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which `bdbench` is this package."""
    return subprocess.run(
        ["sh", "-c", command.replace("bdbench", f"{sys.executable} -m bdbench", 1)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )


# Homes


def options(command: click.Command = cli) -> Iterator[click.Parameter]:
    for each in command.params:
        yield each
    for each in getattr(command, "commands", {}).values():
        yield from options(each)


def test_a_tilde_is_the_home_folder_in_every_path(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(own_folder))
    paths = [option for option in options() if isinstance(option.type, click.Path)]
    assert len(paths) > 20
    for option in paths:
        assert isinstance(option.type, UserPath), option.name
        assert option.type.convert("~/x", None, None) == own_folder / "x"
        assert option.type.convert("x/~", None, None) == Path("x/~")
    monkeypatch.setenv("BDBENCH_CACHE", "~/cache")
    monkeypatch.setenv("BDBENCH_DATA", "~/sets")
    assert cache_root() == own_folder / "cache"
    (own_folder / "more").mkdir()
    assert roots(Path("~/more"))[:2] == [own_folder / "more", own_folder / "sets"]
    assert main(["doctor"]) == 0
    assert not Path("~").exists()


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a name and a home folder, as in containers."""

    def unknown(who: Any) -> NoReturn:
        raise KeyError(f"{who} not found")

    for name in ("HOME", "USER", "LOGNAME", "BDBENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)


@pytest.mark.usefixtures("homeless")
def test_a_named_folder_needs_no_home(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("doctor", "cache ls", "data ls"):
        line = refused(capsys, *command.split())
        assert "no home folder is known: set BDBENCH_CACHE to a folder" in line
    assert "home folder in ~/x is not known" in refused(capsys, "table", "--results=~/x")
    monkeypatch.setenv("BDBENCH_CACHE", str(own_folder / "cache"))
    assert main(["doctor"]) == 0
    assert not Path("~").exists()


def test_the_home_of_an_unknown_user_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BDBENCH_CACHE", "~no-such-user/x")
    assert "home folder in ~no-such-user/x" in refused(capsys, "cache", "ls")


@pytest.mark.parametrize(
    "arguments",
    [
        *(["run", "--dry-run", option, ""] for option in ("--results", "--against", "--data")),
        *(["run", "--dry-run", option, ""] for option in ("--plugin",)),
        ["report", "--results", ""],
        ["report", "--out", ""],
        ["table", "--results", ""],
        ["merge", "", "--results", "new"],
        ["data", "preview", "badnets", "--out", ""],
    ],
)
def test_a_variable_that_is_not_set_is_no_path(
    arguments: list[str], own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--results "$DIR"` would mean the current folder."""
    before = sorted(own_folder.rglob("*"))
    assert "the path is empty; is a variable not set?" in refused(capsys, *arguments)
    assert sorted(own_folder.rglob("*")) == before


@pytest.mark.parametrize("variable", ["BDBENCH_CACHE", "BDBENCH_DATA"])
@pytest.mark.parametrize("text", ['"/x"', "'x'", "$HOME/x", "${X}", " /x", "/x\n", "x\ty", " "])
def test_a_variable_that_no_shell_has_read_is_no_path(
    variable: str,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file of variables for a container keeps quotes and the names of variables."""
    monkeypatch.setenv(variable, text)
    assert refused(capsys, "data", "ls").startswith(f"bdbench: {variable} is ")


# Numbers


@pytest.mark.parametrize("number", ["inf", "nan", "0", "-1", "1e300"])
def test_a_limit_is_a_time(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--limit must be above 0 and at most" in refused(capsys, "run", f"--limit={number}")


@pytest.mark.parametrize("number", ["inf", "nan", "-1", "1e300"])
def test_a_budget_is_a_time(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--budget must be from 0 to" in refused(capsys, "run", f"--budget={number}")


@pytest.mark.parametrize("number", ["inf", "nan", "-1"])
def test_a_share_of_gpus_is_a_number(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--gpus must be" in refused(capsys, "run", "--engine=slurm", f"--gpus={number}")


# Disks and settings


def test_a_data_folder_that_cannot_be_read_is_a_problem_of_its_data_sets_alone(
    close_folder: Callable[[Path], None],
    own_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BDBENCH_DATA", str(own_folder / "closed"))
    close_folder(own_folder / "closed")
    for command, code in (("data ls", 0), ("doctor", 1)):
        assert main(command.split()) == code
        said = capsys.readouterr().out
        problem = rf"cifar10 +PROBLEM: cannot read {own_folder}/closed/\S+: Permission denied\n"
        assert re.search(problem, said)
        assert re.search("toy +generated", said)
    assert "Permission denied" in refused(capsys, "data", "prepare", "cifar10")


def test_an_error_of_the_system_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")
    monkeypatch.setattr("bdbench.storage.maintenance.listing", Mock(side_effect=full))
    assert refused(capsys, "cache", "ls") == "bdbench: somewhere: No space left on device"


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "--in-process"], ["run", "--dry-run", "--jobs=1"]]
)
def test_a_run_does_not_start_in_a_folder_that_was_removed(
    arguments: list[str], remove_folder: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    remove_folder()
    said = "bdbench: the working folder was removed; change to another one"
    assert refused(capsys, *arguments) == said


def test_a_picture_ignores_the_matplotlib_settings_of_the_user(own_folder: Path) -> None:
    preview = ["data", "preview", "badnets", "--count=1", f"--dataset={TOY}"]
    assert main([*preview, "--out=plain.png"]) == 0
    own = {"text.usetex": True, "figure.facecolor": "red", "font.size": 30.0}
    with matplotlib.rc_context(own):
        assert main([*preview, "--out=own.png"]) == 0
    assert Path("own.png").read_bytes() == Path("plain.png").read_bytes()


def test_neither_the_window_system_nor_the_encoding_matters(own_folder: Path) -> None:
    done = shell(
        f"bdbench data preview badnets --count=1 --dataset='{TOY}' --out=é.png",
        MPLBACKEND="module://no_such_thing",
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
        TMPDIR=str(own_folder / ("d" * 120)),  # does not exist
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(".png\n")
    assert (own_folder / "é.png").stat().st_size


# Signals

AGAIN = """
import atexit, os, signal, sys
from bdbench import cli

def again():
    os.kill(os.getpid(), signal.{name})

def refused(*arguments, **more):
    raise KeyboardInterrupt

def interrupted(text, err):
    print(text, file=sys.stderr)
    {reporting}

atexit.register(again if {leaving} else print)
cli.cli.main, cli.say = refused, interrupted
cli.entry()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(("reporting", "leaving"), [("pass", True), ("again()", False)])
def test_one_more_interrupt_changes_nothing(name: str, reporting: str, leaving: bool) -> None:
    program = AGAIN.format(name=name, reporting=reporting, leaving=leaving)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "bdbench: interrupted; run the same command again to resume\n"


# Streams


def test_what_an_encoding_lacks_is_a_question_mark() -> None:
    done = shell("bdbench run --dry-run --engine=ray --defense=none", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "all cells: digits ? wrn16_1 ? none ? seed 0 ? 30 epochs ? recipe(" in done.stdout


@pytest.mark.parametrize("streams", ["", ">&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_the_null_device(streams: str, own_folder: Path) -> None:
    """No file that is opened later takes its place, so that output would go into it."""
    (own_folder / "opens.py").write_text("import os\nopen('number', 'w').write(str(os.dup(0)))\n")
    done = shell(f"bdbench list suites --plugin=opens.py {streams}")
    said = (
        ""
        if "2>&-" in streams
        else "bdbench: warning: plugin 'opens.py' registers nothing, so no cell imports it\n"
    )
    assert (done.returncode, done.stderr) == (0, said)
    assert int(Path("number").read_text()) > 2


@pytest.mark.parametrize("command", ["list suites", "run --dry-run --engine=ray"])
def test_a_reader_may_close_the_pipe(command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "bdbench", *command.split()],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == ""

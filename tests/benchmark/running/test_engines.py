"""Cells in several processes, some of which die."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from bdbench.cli import main
from bdbench.storage.cache import sha256_of
from bdbench.trial.failure import LESS_MEMORY

PLUGIN = '''"""A defense for tests that trains nothing and does as it is told, nobody, 2026."""
from __future__ import annotations

import os
import signal
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from bdbench.defenses import register
from bdbench.defenses.base import Context, Defense
from bdbench.models import Classifier
from bdbench.models.data import ImageSet
from bdbench.models import train


@register("docile")
@dataclass(frozen=True)
class Docile(Defense):
    """
    deed: what it does before all else
    number: any
    """

    deed: str = ""
    number: int = 0

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        log = Path(os.environ["DEEDS"])
        done = log.read_text() if log.exists() else ""
        with log.open("a") as file:
            file.write(f"{self.deed} {self.number}\\n")
        if self.deed == "die" or (self.deed == "die once" and "die once" not in done):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.deed == "exhaust":
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
            bytearray(2**40)
        if self.deed == "sleep":
            time.sleep(60)
        if self.deed == "sleep deaf":
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            time.sleep(60)
        if self.deed == "sleep disarmed":
            signal.setitimer(signal.ITIMER_REAL, 0)
            time.sleep(60)
        if self.deed == "sleep on":
            try:
                time.sleep(60)
            except BaseException:
                time.sleep(60)
        if self.deed == "wait":
            while not log.with_name("over").exists():
                time.sleep(0.05)
        if self.deed == "kill group":
            os.killpg(0, signal.SIGTERM)
            time.sleep(60)
        if self.deed == "warn":
            for n in range(3000):
                warnings.warn(f"{n} {'x' * 60}")
        if self.deed == "fail again" and self.deed in done:
            raise RuntimeError("no such luck")
        if self.deed == "train":
            return train(context.build(), data, context.recipe, context.rng("classifier"))
        return context.build().eval()
'''
VULNERABLE = '''"""For tests of kills: every epoch is kept, and the disk is slow, nobody, 2026."""
from __future__ import annotations

import os
import time

from bdbench.trial import workspace
from bdbench.storage.checkpoints import Checkpoints

sync = os.fsync


class Always(Checkpoints):
    def __init__(self, folder, note, recall, patience):
        super().__init__(folder, note, recall, patience=-1.0)


def slowly(descriptor):
    time.sleep(0.1)
    sync(descriptor)


workspace.Checkpoints = Always
os.fsync = slowly
'''
SIZES = "--dataset=toy(train_images=100, test_images=50)"
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module", autouse=True)
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "docile.py").write_text(PLUGIN)
    (folder / "vulnerable.py").write_text(VULNERABLE)
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, plugins: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results go."""
    enter(tmp_path, plugins, monkeypatch)
    return tmp_path


def enter(folder: Path, plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for path in plugins.glob("*.py"):
        (folder / path.name).symlink_to(path)
    monkeypatch.setenv("DEEDS", str(folder / "deeds"))


def command(*more: str, defenses: tuple[str, ...] = (), epochs: int = 1) -> list[str]:
    fixed = ["run", SIZES, "--attack=none", "--device=cpu", "--precision=fp32"]
    chosen = [f"--epochs={epochs}", *(f"--defense={text}" for text in defenses)]
    return [*fixed, "--plugin=docile.py", *chosen, *more]


def results(folder: Path, name: str = "results/quick") -> dict[str, dict[str, Any]]:
    """The records by defense and seed, apart from times."""
    found = {}
    for path in (folder / name / "records").glob("*.json"):
        document = json.loads(path.read_text())
        found[f"{document['labels']['defense']} {document['cell']['seed']}"] = document
    return found


def numbers(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    apart = {"measured", "checksum"}
    return {
        name: {part: value for part, value in document.items() if part not in apart}
        for name, document in found.items()
    }


def strays(folder: Path) -> list[Path]:
    hidden = [path for path in (folder / "results").rglob(".*") if path.is_file()]
    cache = Path(os.environ["BDBENCH_CACHE"])
    half = list(cache.rglob("*.tmp"))
    checkpoints = [path for path in (cache / "checkpoints").rglob("*") if path.is_file()]
    return [*hidden, *half, *checkpoints]


def test_one_worker_dies_always_one_once_and_the_others_finish(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = ("docile", "docile(deed='die')", "docile(deed='die once')", "docile(deed='exhaust')")
    assert main(command("--jobs=2", defenses=kinds)) == 1
    said = capsys.readouterr().out
    assert "worker killed (SIGKILL, possibly out of memory); resuming in another" in said
    found = results(folder)
    fine, dead, once, exhausted = (found[f"{kind} 0"] for kind in kinds)
    assert fine["status"] == once["status"] == "ok"
    assert fine["measured"]["retries"] == []
    assert once["measured"]["retries"] == ["killed (SIGKILL, possibly out of memory)"]
    assert dead["status"] == exhausted["status"] == "failed"
    assert dead["error"]["type"] == "WorkerDied"
    assert exhausted["error"]["type"] == "MemoryError"
    assert exhausted["error"]["message"] == LESS_MEMORY
    done = Counter((folder / "deeds").read_text().splitlines())
    assert done == {" 0": 1, "die 0": 3, "die once 0": 2, "exhaust 0": 1}
    assert strays(folder) == []


def test_workers_make_the_same_records_and_a_limit_ends_a_cell(folder: Path) -> None:
    kinds = ("docile", "docile(deed='train')", "docile(number=1)")
    assert main(command("--jobs=2", defenses=kinds)) == 0
    assert main(command("--results=alone", defenses=kinds)) == 0
    assert numbers(results(folder)) == numbers(results(folder, "alone"))
    slow = command("--limit=0.5", defenses=("docile(deed='sleep')", "docile"))
    assert main([*slow, "--results=limited"]) == 1
    late = results(folder, "limited")["docile(deed='sleep') 0"]
    assert late["error"]["type"] == "TimeLimit"
    # It would sleep for a minute.
    assert late["measured"]["seconds"]["fit"] < 60
    assert late["error"]["message"] == (
        "stopped at --limit 0.5 s; run again to resume from the last checkpoint"
    )
    assert strays(folder) == []


def test_a_plugin_cannot_swallow_its_limit(folder: Path) -> None:
    """Whatever it does about the signal: the keeper kills it seconds later."""
    kinds = tuple(f"docile(deed='sleep {how}')" for how in ("on", "deaf", "disarmed"))
    assert main(command("--limit=2", "--jobs=3", defenses=(*kinds, "docile"))) == 1
    found = results(folder)
    assert found.pop("docile 0")["status"] == "ok"
    for name in kinds:
        error = found[f"{name} 0"]["error"]
        assert error["type"] == "TimeLimit"
        assert error["message"].startswith("stopped at --limit 2 s; run again")


def test_a_signal_to_the_group_of_a_cell_ends_no_other(folder: Path, start: Start) -> None:
    kinds = ("docile(deed='kill group')", "docile(deed='train')", "docile")
    run = start(*command("--jobs=2", defenses=kinds))
    said = run.communicate(timeout=300)
    assert run.returncode == 1, said
    found = results(folder)
    killed, *others = (found[f"{kind} 0"] for kind in kinds)
    assert killed["error"]["message"] == "worker killed (SIGTERM); gave up after 3 attempts"
    assert all(each["status"] == "ok" for each in others)


@pytest.mark.parametrize("place", [["--jobs=1", "--limit=60"], ["--in-process"]])
def test_a_run_that_is_suspended_suspends_its_cells(
    place: list[str], folder: Path, start: Start
) -> None:
    """As Ctrl-Z does, which does not reach the groups of the cells. The time does not count."""
    run = start(*command(*place, defenses=("docile(deed='wait')",)))
    while not (folder / "deeds").exists():
        assert run.poll() is None
        time.sleep(0.05)
    begun = time.monotonic()
    processes = [run.pid, *family(run.pid)[-1:]]

    def all_are(stopped: bool) -> bool:
        states = [psutil.Process(pid).status() == psutil.STATUS_STOPPED for pid in processes]
        return set(states) == {stopped}

    for number, stopped in ((signal.SIGTSTP, True), (signal.SIGCONT, False)):
        run.send_signal(number)
        limit = time.monotonic() + 20
        while not all_are(stopped):
            assert time.monotonic() < limit
            time.sleep(0.05)
        time.sleep(3.0 if stopped else 0.0)
    (folder / "over").touch()
    run.communicate(timeout=60)
    assert run.returncode == 0
    (record,) = results(folder).values()
    # It was suspended for three seconds of these.
    assert record["measured"]["seconds"]["fit"] < time.monotonic() - begun - 2.0


@pytest.mark.parametrize("output", ["/dev/full", "a closed pipe"])
def test_cells_finish_where_no_output_can_be_written(folder: Path, output: str) -> None:
    kinds = ("docile", "docile(deed='warn')")
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full" if output == "/dev/full" else writing, "wb") as broken:
        words = [sys.executable, "-m", "bdbench", *command("--jobs=1", defenses=kinds)]
        done = subprocess.run(words, stdout=broken, stderr=subprocess.PIPE, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert {each["status"] for each in results(folder).values()} == {"ok"}
    assert len(results(folder)) == 2


EDITS = '''"""A defense during whose first cell a file changes, nobody, 2026."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bdbench.defenses import register
from bdbench.defenses.base import Defense
from its_helper import HELP


@register("edits")
@dataclass(frozen=True)
class Edits(Defense):
    """which: the name of the file"""

    which: str = "edits.py"
    # Here.

    def fit(self, data, context):
        path = Path(self.which)
        text = path.read_text()
        path.write_text(text.replace("# Here.", "version = 2") + "# Changed.\\n")
        return context.build().eval()
'''


@pytest.mark.parametrize("which", ["edits.py", "its_helper.py"])
@pytest.mark.usefixtures("unregistered")
def test_a_plugin_file_that_changes_during_a_run_ends_its_own_cells_alone(
    which: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "edits.py").write_text(EDITS)
    (folder / "its_helper.py").write_text("HELP = 1\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "its_helper", raising=False)
    kinds = (f"edits(which={which!r})", "docile")
    more = ("--plugin=edits.py", "--seeds=2", "--jobs=1")
    assert main(command(*more, defenses=kinds)) == 2
    said = capsys.readouterr().out
    assert "has changed during the run: run the same command again" in said
    assert said.count("refused, key") == 1
    found = results(folder)
    assert {each["status"] for each in found.values()} == {"ok"}
    assert len(found) == 3


@pytest.mark.parametrize("addition", [["--curves"], ["--save"], ["--curves", "--limit=0.01"]])
def test_a_failed_addition_leaves_the_record(
    addition: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = "docile(deed='fail again')"
    assert main(command(defenses=(kind,))) == 0
    before = results(folder)
    capsys.readouterr()
    assert main(command(*addition, defenses=(kind,))) == 1
    assert results(folder) == before
    assert "it would replace one that has results" in capsys.readouterr().out


LOADS = '''"""A data set that cannot be loaded."""
import sys
import time
from dataclasses import dataclass

from bdbench.datasets import register
from bdbench.datasets.toy import Toy
from bdbench.models import InvalidInput


@register("loads")
@dataclass(frozen=True)
class Loads(Toy):
    """deed: what happens while it is loaded"""

    name = "loads"
    deed: str = ""

    def load(self, roots, cache):
        if self.deed == "sleep":
            time.sleep(60)
        if self.deed == "raise":
            raise RuntimeError("no such luck")
        if self.deed == "leave":
            sys.exit(3)
        if self.deed == "refuse":
            raise InvalidInput("the images are gone")
        return super().load(roots, cache)
'''


@pytest.mark.parametrize("where", ["--in-process", "--jobs=2"])
@pytest.mark.usefixtures("unregistered")
def test_a_data_set_that_cannot_be_loaded_ends_its_own_cells_alone(
    where: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "loads.py").write_text(LOADS)
    words = [word for word in command(where, "--plugin=loads.py") if word != SIZES]

    def errors(name: str, *more: str) -> dict[str, str]:
        """By what happens, the type of the error in the record."""
        assert main([*words, *more, "--defense=docile", f"--results={name}"]) == 2
        assert "the images are gone" in capsys.readouterr().out
        found = {}
        for path in (folder / name / "records").glob("*.json"):
            document = json.loads(path.read_text())
            deed = re.search(r"deed='(\w*)'", document["cell"]["dataset"])
            assert deed is not None
            assert document["measured"]["isolated"] == (where != "--in-process")
            found[deed[1]] = document["error"]["type"] if document["error"] else ""
        return found

    sizes = "train_images=40, test_images=40, image_size=16"
    sets = {
        deed: f"--dataset=loads({sizes}, deed={deed!r})"
        for deed in ("sleep", "refuse", "raise", "leave", "")
    }
    late = sets.pop("sleep")
    failed = {"raise": "RuntimeError", "leave": "SystemExit"}
    assert errors("all", *sets.values()) == {**failed, "": ""}
    found = errors("late", late, sets["refuse"], sets["leave"], "--limit=0.5")
    assert found["sleep"] == "TimeLimit"
    assert found.keys() == {"sleep", "leave"}


def test_a_defense_without_enough_images_stops_no_other_in_one_process(folder: Path) -> None:
    sizes = "--dataset=toy(train_images=12, test_images=40, image_size=16)"
    words = [word for word in command("--in-process", defenses=("ft", "none")) if word != SIZES]
    assert main([*words, sizes]) == 2
    assert results(folder)["none 0"]["status"] == "ok"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--jobs=0"], "--jobs must be at least 1, got 0"),
        (["--threads=10000000000"], "--threads must be at most "),
        (["--engine=ray", "--cores=99999"], "--cores must be at most 1,024, got 99999"),
        (["--engine=slurm", "--gpus=1025"], "--gpus must be at most 1,024, got 1025.0"),
        (["--limit=0"], "--limit must be above 0 and at most 1,000,000,000 seconds, got 0.0"),
        (["--engine=rey"], "unknown engine 'rey'; did you mean 'ray'?"),
        (["--cores=2"], "--cores is for --engine ray and slurm"),
        (["--option=a=b"], "--option is for --engine ray and slurm"),
        (["--engine=ray", "--option=a"], "--option is written KEY=VALUE, got 'a'"),
        (["--engine=ray", "--gpus=-1"], "--gpus must be at least 0, got -1.0"),
        (["--engine=slurm", "--device=cuda"], "--device cuda needs --gpus, the number of GPUs of"),
        (["--engine=ray", "--gpus=1", "--device=cpu"], "--gpus is of no use to --device cpu"),
        (["--engine=ray", "--budget=9"], "--budget is for --engine local"),
        (["--engine=ray", "--device=cud"], "device 'cud' does not exist; did you mean 'cuda'?"),
        (["--engine=slurm", "--device=cuda:x"], "device 'cuda:x' does not exist"),
        (["--engine=slurm", "--device="], "device '' does not exist"),
        pytest.param(
            ["--engine=slurm"],
            "needs the command sbatch",
            marks=pytest.mark.skipif(find_spec("submitit") is None, reason="needs submitit"),
        ),
    ],
)
def test_impossible_options_are_one_line(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(*options)) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.slow
def test_two_runs_of_two_workers_run_each_cell_once(folder: Path, start: Start) -> None:
    arguments = command(
        "--jobs=2", "--seeds=20", defenses=tuple(f"docile(number={n})" for n in range(3))
    )
    runs = [start(*arguments) for _ in range(2)]
    for run in runs:
        said = run.communicate(timeout=300)
        assert run.returncode == 0, said
    assert len(results(folder)) == 60
    assert Counter((folder / "deeds").read_text().splitlines()) == {f" {n}": 20 for n in range(3)}
    assert strays(folder) == []


# Runs that are killed

SUITE = command("--seeds=2", defenses=("none", "cbd", "ft", "docile(deed='train')"), epochs=3)
ENDS = {"parent": -signal.SIGKILL, "worker": 1, "everything": -signal.SIGKILL, "nobody": 130}
"""Who is killed, and how a run ends that is not finished."""


@dataclass
class Moment:
    """When to kill a run.

    where: "records" or "cache", while a file is written there; "anywhere", whatever it does;
        "start", while it is loaded
    writes: how many files it begins to write before that
    pause: seconds that it then continues, unless it should be killed while writing
    """

    where: str
    writes: int
    pause: float


def half_written(suite: Path) -> set[str]:
    """Records and files of the cache, relative to the folder of the suite."""
    patterns = ("results/quick/records/.*.tmp", "cache/*/.*.tmp", "cache/checkpoints/*/.*.tmp")
    return {path for pattern in patterns for path in glob(pattern, root_dir=suite)}


def reached(moment: Moment, whom: str, run: subprocess.Popen[str], suite: Path) -> str | None:
    """Wait for a moment of a run. Returns the file that is being written, or "" where none need be;
    None where the run ends before, and then the moment becomes a sooner one."""
    if moment.where == "start":
        while run.poll() is None and whom == "worker" and not family(run.pid):
            time.sleep(0.01)
        time.sleep(moment.pause / 3)
        return "" if run.poll() is None else None
    old, begun = half_written(suite), set[str]()
    while run.poll() is None:
        now = half_written(suite) - old
        wanted = [path for path in now if f"{moment.where}/" in path]
        if len(begun) >= moment.writes and wanted:
            return wanted[0]
        begun |= now
        if len(begun) >= moment.writes and moment.where == "anywhere":
            time.sleep(moment.pause)
            return "" if run.poll() is None else None
        time.sleep(0.01)
    moment.writes, moment.pause = moment.writes // 2, moment.pause / 2
    return None


def processes(*options: str) -> list[int]:
    asked = subprocess.run(["pgrep", *options], capture_output=True, text=True, check=False)
    return [int(pid) for pid in asked.stdout.split()]


def family(pid: int) -> list[int]:
    """All that a process has started and that lives."""
    with suppress(psutil.Error):
        return [each.pid for each in psutil.Process(pid).children(recursive=True)]
    return []


def has_open(pid: int, path: Path) -> bool:
    with suppress(OSError):
        return any(link.readlink() == path for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


def kill(whom: str, run: subprocess.Popen[str], path: Path, chance: random.Random) -> int | None:
    """Returns who was killed: of the workers the one that writes the file, if any does; None where
    there is no worker."""
    victim = run.pid
    if whom == "worker":
        # The nursery, keepers and cells, and processes that are still loading.
        workers = family(run.pid)
        if not workers:
            return None
        victim = chance.choice([pid for pid in workers if has_open(pid, path)] or workers)
    if whom == "everything":
        for pid in [*family(run.pid), run.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    elif whom == "nobody":
        os.kill(victim, chance.choice([signal.SIGTERM, signal.SIGINT]))
    else:
        os.kill(victim, signal.SIGKILL)
    return victim


def died(whom: str, run: subprocess.Popen[str], victim: int) -> bool:
    """Wait until the victim is gone, with all of the run unless it continues. Returns whether
    it was killed, and not at its end before that."""
    if whom == "worker":
        while psutil.pid_exists(victim) and psutil.Process(victim).status() != "zombie":
            time.sleep(0.05)
        return run.poll() is None
    code, limit = run.wait(60), time.monotonic() + 10
    while orphans := processes("-g", str(run.pid)):
        assert time.monotonic() < limit, orphans
        time.sleep(0.05)
    return code == ENDS[whom]


def made(folder: Path) -> dict[str, str]:
    """All files of a run, with the hashes of networks and of other tensors."""
    found = {}
    for path in (path for top in ("results", "cache") for path in (folder / top).rglob("*")):
        if path.is_file():
            tensors = path.suffix == ".safetensors"
            found[str(path.relative_to(folder))] = sha256_of(path) if tensors else ""
    return found


@pytest.fixture(scope="module")
def undisturbed(plugins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the suite was run and nobody was killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, plugins, patch)
        patch.setenv("BDBENCH_CACHE", str(folder / "cache"))
        assert main(SUITE) == 0
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("whom", ENDS)
def test_whoever_is_killed_the_records_are_those_of_an_undisturbed_run(
    whom: str,
    folder: Path,
    plugins: Path,
    undisturbed: Path,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every kill is of a living run: a suite that is finished starts over in a fresh folder. Where
    it is of nobody, the run is stopped with SIGTERM or Ctrl-C."""
    chance, times = random.Random(whom), 6 if whom == "nobody" else 21
    places = (times // 3) * ["start", "anywhere", "cache"]
    places[2::6] = ["records"] * len(places[2::6])
    chance.shuffle(places)
    moments = [Moment(place, chance.randint(1, 8), chance.uniform(0, 3)) for place in places]
    kills, starts, resumed, caught = 0, 0, 0, Counter[str]()
    for number in range(times):
        suite = folder / f"suite {number}"
        suite.mkdir()
        enter(suite, plugins, monkeypatch)
        monkeypatch.setenv("BDBENCH_CACHE", str(suite / "cache"))
        code = None
        while code != 0:
            run = start(*SUITE, "--plugin=vulnerable.py", f"--jobs={1 + starts % 2}")
            starts += 1
            while moments and run.poll() is None:
                name = reached(moments[-1], whom, run, suite)
                if name is None:
                    break
                path = suite / name
                victim = kill(whom, run, path, chance)
                writing = path.is_file()
                if victim is not None and died(whom, run, victim):
                    kills += 1
                    caught[moments.pop().where] += writing
            said = run.communicate(timeout=300)
            code = run.returncode
            assert code in (0, ENDS[whom]), said
        assert numbers(results(suite)) == numbers(results(undisturbed))
        assert made(suite) == made(undisturbed)
        resumed += sum(found["measured"]["resumed"] for found in results(suite).values())
        if not moments:
            break
    print(f"{whom}: {kills} kills, while writing {dict(caught)}; resumed {resumed}")
    assert kills == times
    assert resumed > 0
    assert whom == "nobody" or (caught["records"] and caught["cache"])

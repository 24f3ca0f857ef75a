"""What a run says about its speed, on a clock that is set by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from io import StringIO

import pytest
from builders import make_record
from rich.cells import cell_len
from rich.console import Console

from bdbench.cli.transfer import ProgressLines, watched
from bdbench.records.record import STAGES
from bdbench.running import progress
from bdbench.running.progress import (
    COLUMNS,
    Reporter,
    elapsed,
    has_bar,
    shortened,
    summary,
    titled,
)


def test_a_cell_is_said_to_take_the_time_from_its_start_to_its_end() -> None:
    """It is charged with an undefended network that an earlier cell trained."""
    done = make_record("ft", "badnets", 880, 20, seconds=(7200.0, 6.0))
    assert summary(done) == "CA 88.0, ASR 2.0, 1 min"
    failed = make_record("ft", "badnets", seconds=(7200.0, 6.0))
    assert summary(failed) == f"FAILED after 1 min, key {failed.key}"
    lost = failed.measured.with_(seconds=dict.fromkeys(STAGES, 0.0))
    assert summary(replace(failed, measured=lost)) == f"FAILED, key {failed.key}"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its only element is what the clock shows, in seconds."""
    shown = [1000.0]
    monkeypatch.setattr(progress, "now", lambda: shown[0])
    return shown


def lines(
    clock: list[float], advances: list[tuple[float, float]], console: Console | None = None
) -> list[str]:
    """All that is said of a cell of 300,000 forward passes that advances so, after so many seconds
    each time; without a bar."""
    console = console or Console(file=StringIO(), width=200)
    with Reporter(1, 3e5, console) as reporter:
        reporter.begin("a", ["cell"], "short", 3e5)
        for seconds, work in advances:
            clock[0] += seconds
            reporter.advance("a", work)
        reporter.end("a", "done")
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_line_tells_images_per_second_beside_what_is_left(clock: list[float]) -> None:
    """300 forward passes in a second are 100 images, a forward and a backward pass each."""
    said = lines(clock, [(1.0, 300.0)] * 31)
    assert said == [
        "[1/1] cell: 3%, 3,100 images, 100 images/s, about 16 min left in all",
        "[1/1] cell: done",
    ]


def test_the_speed_is_that_of_the_last_seconds(clock: list[float]) -> None:
    said = lines(clock, [(1.0, 300.0)] * 15 + [(1.0, 3000.0)] * 16)
    assert "1,000 images/s" in said[0]


@pytest.mark.parametrize("where", [0, 20, 28])
def test_neither_a_checkpoint_nor_a_pause_is_speed(clock: list[float], where: int) -> None:
    """What an earlier attempt did comes at once; while a network is tested nothing advances."""
    advances = [(1.0, 300.0)] * 31
    advances[where] = (0.5, 60_000.0)
    advances[where + 1] = (6.0, 300.0)
    assert "100 images/s" in lines(clock, advances)[0]


def test_short_steps_are_not_looked_at_one_by_one(clock: list[float]) -> None:
    """Steps that are queued in bursts, as on a GPU: each takes a millisecond or none."""
    said = lines(clock, [(0.0 if n % 2 else 0.002, 0.3) for n in range(32_000)])
    assert said[0].endswith(" images, 100 images/s, about 16 min left in all")
    reporter = Reporter(1, 3e5, Console(file=StringIO()))
    reporter.begin("a", ["cell"], "short", 3e5)
    for _ in range(100_000):
        clock[0] += 0.001
        reporter.advance("a", 0.3)
    assert len(reporter._running["a"].looks) <= progress.WINDOW / progress.LOOK + 2


class Screen(StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


def bar(reporter: Reporter, console: Console) -> str:
    """The one line of it."""
    (line,) = console.render_lines(reporter._bar.get_renderable(), pad=False)
    return "".join(segment.text for segment in line)


def test_the_bar_sums_the_speed_of_all_cells_and_fits_80_columns(clock: list[float]) -> None:
    console = Console(file=Screen(), width=80, _environ={"TERM": "xterm"})
    with Reporter(128, 3e7, console) as reporter:
        for key in "ab":
            reporter.begin(key, ["cell"], "badnets · a long name of a defense", 1e7)
        for _ in range(9):
            clock[0] += 1.0
            reporter.advance("a", 3 * 60_000.0)
            reporter.advance("b", 3 * 63_456.0)
        assert "[2/128] 2 at once" in bar(reporter, console)
        assert "123,456 img/s" in bar(reporter, console)
        reporter.end("a", "done")
        for _ in range(19):
            clock[0] += 1.0
            reporter.advance("b", 3 * 234_567.0)
        shown = bar(reporter, console)
        assert shown.startswith("[2/128] badnets · a long na… ")
        assert re.search(r"234,567 img/s 0:00:00 \d+ s left", shown)
        assert shown.count("…") == 1
        reporter.end("b", "done")
        assert reporter._bar.tasks[0].fields["speed"] == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (70.0, "1 min 10 s"),
        (599.0, "9 min 59 s"),
        (720.0, "12 min"),
        (7200.0, "2.0 h"),
    ],
)
def test_seconds_are_told_in_words(seconds: float, said: str) -> None:
    assert elapsed(seconds) == said


@pytest.mark.parametrize("width", [3, 8, 9, 25, 80])
@pytest.mark.parametrize("text", ["cbd", "cbd(t1=3, select='cv')", "folder(path='データ')"])
def test_a_long_text_loses_its_middle(text: str, width: int) -> None:
    found = shortened(text, width)
    assert cell_len(found) <= width
    if cell_len(text) <= width:
        assert found == text
    else:
        left, right = found.split("…")
        assert text.startswith(left)
        assert text.endswith(right)
        # A wide character may leave a column free.
        assert cell_len(found) >= width - 1


def test_the_longest_part_of_a_name_is_shortened_and_the_numbers_stay() -> None:
    name, numbers = ["badnets", "cbd(t1=3, select='cv', folds=5)"], ": CA 82.4, ASR 4.8"
    assert titled(name, 100, numbers) == f"badnets · {name[1]}{numbers}"
    assert titled(name, 45, numbers) == f"badnets · cbd(t1=3…folds=5){numbers}"
    assert titled(name, 10, numbers) == f"b…s · c…){numbers}"


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_a_line_fits_whatever_the_specs(parts: int, clock: list[float]) -> None:
    console = Console(file=StringIO(), width=200)
    name = [f"a_long_name_{n}(field='{n * 40 * 'x'}', other=[1, 2, 3])" for n in range(parts)]
    result = "CA 100.0, ASR 100.0, 9 min 59 s, attack_failed, at_chance"
    with Reporter(128, 3e7, console) as reporter:
        reporter.begin("a", name, "short", 1.5e7)
        for _ in range(40):
            clock[0] += 10.0
            reporter.advance("a", 3e5)
        reporter.end("a", result)
    said = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(said) > 5
    assert max(map(cell_len, said)) <= COLUMNS
    assert all(line.startswith("[1/128] a") for line in said)
    assert result in said[-1]
    assert ("left" in said[-1]) == (parts < 5), "the time left goes before the name does"


def test_the_last_line_says_no_time_left(clock: list[float]) -> None:
    console = Console(file=StringIO(), width=200)
    with Reporter(2, 2e5, console) as reporter:
        for key in "ab":
            reporter.begin(key, [key], key, 1e5)
            clock[0] += 10.0
            reporter.advance(key, 5e4)
            clock[0] += 10.0
            reporter.advance(key, 5e4)
            reporter.end(key, "done")
    said = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert re.fullmatch(r"\[1/2\] a: done, about \d+ s left", said[0])
    assert said[1] == "[2/2] b: done"


def test_what_an_earlier_run_has_done_takes_no_time_of_this_one(clock: list[float]) -> None:
    """Half of a cell is found; the other half goes at 100 images/s."""
    console = Console(file=StringIO(), width=200)
    with Reporter(1, 150_000.0, console) as reporter:
        reporter.begin("a", ["cell"], "short", 150_000.0, 150_000.0)
        for _ in range(31):
            clock[0] += 1.0
            reporter.advance("a", 300.0)
        reporter.end("a", "done")
    # 150,000 at 300 a second are 500 s, of which 31 are over.
    assert console.file.getvalue().splitlines()[0] == (  # type: ignore[attr-defined]
        "[1/1] cell: 53%, 53,100 images, 100 images/s, about 8 min left in all"
    )


@pytest.mark.parametrize(("kind", "drawn"), [("xterm", True), ("dumb", False)])
def test_a_terminal_that_cannot_draw_a_bar_gets_lines(kind: str, drawn: bool) -> None:
    console = Console(file=Screen(), _environ={"TERM": kind})
    assert has_bar(console) == drawn


@pytest.mark.parametrize("forced", [{"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}])
def test_a_file_gets_lines_also_where_colours_are_forced(forced: dict[str, str]) -> None:
    file = StringIO()
    console = Console(file=file, width=200, _environ={"TERM": "xterm", **forced})
    with Reporter(1, 100.0, console) as reporter:
        reporter.begin("a", ["cell"], "short", 100.0)
        reporter.advance("a", 50.0)
        reporter.end("a", "done")
    assert file.getvalue() == "[1/1] cell: done\n"


def test_a_download_into_a_file_prints_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("sys.stdout", StringIO())
    with watched() as watcher:
        assert type(watcher) is ProgressLines

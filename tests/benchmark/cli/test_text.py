"""Tables, pages and terminals show the text of records and plugins as it is."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import builders
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from bdbench.cli import main
from bdbench.cli.group import say
from bdbench.machine.terminal import Terminal
from bdbench.records.files import write
from bdbench.report.site import write_report
from bdbench.tables.sheet import PaperTable, TableCell
from bdbench.tables.text import as_csv, as_latex, as_markdown
from bdbench.tables.verify import verify
from bdbench.tables.write import leaderboard, table_files

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1))",
    "![a](http://x/y.png)",
    "<http://x>",
    "a | b",
    r"a\| b \| c",
    "**bold** *it* __b__ _i_ ~~gone~~",
    "`code` &lt;b&gt; &#60;",
    "# heading",
    "- item",
    "+ item",
    "a_b(c_d='e__f')",
    "<!-- gone -->",
)
COMMANDS = ("\x1b[2Jx", "\x9b2Jx", "a\u202eb", "a\u2066b", "a\x07b\x08", "a\rb", "\x1b]0;title\x07")


def shown(markdown: str) -> str:
    """The text that a reader of Markdown sees."""
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    parts = [
        child.content if child.type == "text" else f"<{child.type}>"
        for token in reader.parse(markdown)
        for child in token.children or []
    ]
    return "".join(parts)


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_a_text_as_it_is(text: str) -> None:
    assert shown(as_markdown(text)) == text
    assert shown(f"- {as_markdown(text)}") == text
    assert text in shown(f"| head |\n|---|\n| {as_markdown(text)} |")


@pytest.mark.parametrize("text", HOSTILE)
def test_no_table_in_markdown_has_the_markup_of_a_label(text: str) -> None:
    record = builders.make_record(text, "badnets", 900, 20)
    record = replace(record, cell=record.cell.with_(defense="mine", dataset="cifar10"))
    noted = replace(record, provenance=record.provenance.with_(data_notes=[text]))
    sheet = PaperTable(text, (text,), ((text, "ASR"),), (((text,), (TableCell("1"),)),), (text,))
    for made_of in (leaderboard([noted]).markdown(), sheet.markdown(), verify([noted]).markdown()):
        for mark in ("<html_inline>", "<link_open>", "<image>", "<code_inline>", "<em_open>"):
            assert mark not in shown(made_of)
    assert text in shown(sheet.markdown())


def test_a_text_of_several_lines_is_one_line() -> None:
    text = "one\n\ntwo\x1b[2J"
    assert as_markdown(text) == r"one two\\x1b\[2J"
    assert as_latex(text) == r"one two\textbackslash{}x1b[2J"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("L^2", r"L\textasciicircum{}2"),
        ("a<b>c", r"a\textless{}b\textgreater{}c"),
        ("a~b", r"a$\sim$b"),
        ("a\\b", r"a\textbackslash{}b"),
        ("a_b%&#${}|", r"a\_b\%\&\#\$\{\}\textbar{}"),
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
    ],
)
def test_latex_executes_no_command_in_a_text(text: str, expected: str) -> None:
    assert as_latex(text) == expected
    entry = TableCell("1.0", "5; -4.0", best=True)
    sheet = PaperTable(text, (text,), ((text, "ASR"),), (((text,), (entry,)),), (text,))
    found = sheet.latex()
    assert found.count(expected) >= 5
    assert r"\textbf{1.0} (5; $-$4.0)" in found
    assert not re.search(r"(?<!\\)\^(?!\{\}|\\circ)", found)
    assert len(re.findall(r"(?<!\\)\{", found)) == len(re.findall(r"(?<!\\)\}", found))


@pytest.mark.parametrize(
    "text",
    [
        *("=1+1", "+1+1", "-1+cmd", "@SUM(1)", "\t=1", "\r=1", "\n=1"),
        *("\uff1d1+1", "\uff0b1", "\uff20SUM(1)", "\u3000=1"),
    ],
)
def test_a_spreadsheet_evaluates_no_text(text: str) -> None:
    frame = pd.DataFrame({"name": [text, "x=1"], "more": [-0.5, 2.0], "odd": [-1, None]})
    (_, first, second) = csv.reader(io.StringIO(as_csv(frame), newline=""))
    assert first == [f"'{text.strip()}", "-0.5", "-1"]
    assert second == ["x=1", "2", ""]


def test_numbers_among_texts_stay_numbers() -> None:
    frame = pd.DataFrame({"mixed": [-3, None, "=x", -0.25, True]})
    assert as_csv(frame) == 'mixed\n-3\n""\n\'=x\n-0.25\nTrue\n'


def test_the_tables_of_a_label_have_no_formula(tmp_path: Path) -> None:
    label = "=cmd|'/C calc'!A0"
    records = [
        replace(record, labels=record.labels.with_(model=label))
        for record in (builders.make_record(name, "badnets", 900, 20) for name in ("none", "cbd"))
    ]
    files = table_files(1, records, tmp_path)
    texts = [text for name, text in files.items() if name.endswith(".csv")]
    for text in (leaderboard(records).csv(), *texts):
        rows = list(csv.reader(io.StringIO(text)))
        assert f"'{label}" in rows[1]
        assert not any(cell.startswith("=") for row in rows for cell in row)


@pytest.mark.parametrize("text", COMMANDS)
def test_a_terminal_shows_control_sequences_and_executes_none(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    say(f"one\n{text}")
    file = io.StringIO()
    Terminal(file=file, force_terminal=False).print(text, markup=False, highlight=False)
    assert isinstance(Terminal(), Console)
    for printed in (capsys.readouterr().out, file.getvalue()):
        assert all(line.isprintable() for line in printed.split("\n"))
        assert "\\" in printed


@pytest.mark.parametrize("text", COMMANDS)
def test_text_of_a_record_controls_no_terminal_and_no_page(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = builders.make_record("cbd", "badnets", 900, 20)
    changes = {
        "diagnostics": {"warnings": [text], "note": text},
        "provenance": record.provenance.with_(device=text, data_notes=[text]),
    }
    failed = builders.make_record("none", "badnets")
    error = {"type": text, "message": text, "traceback": f"one\n{text}"}
    folder = tmp_path / "a\x1b[2Jb"
    keys = [record.key, failed.key]
    for each in (replace(record, **changes), replace(failed, error=error)):
        write(folder, each)
    for command in (["table"], ["verify"], ["verify", "--json"], *(["explain", k] for k in keys)):
        main([*command, "--results", str(folder)])
        printed = "".join(capsys.readouterr())
        assert all(line.isprintable() for line in printed.split("\n")), command
    write_report([replace(record, **changes), replace(failed, error=error)], folder)
    for page in (folder / "report").rglob("*.html"):
        assert all(line.isprintable() for line in page.read_text().split("\n")), page

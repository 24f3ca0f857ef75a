"""The leaderboard in LaTeX: it is well formed and escaped, and names plugins as people write them.

No LaTeX runs here: the tests check, row by row, for what would stop it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import make_classified, make_record

from bdbench.cells.cell import REGISTRIES
from bdbench.cli import main
from bdbench.models.plugins.errors import InvalidInput
from bdbench.records import files as records
from bdbench.records.record import Record
from bdbench.tables.groups import collect
from bdbench.tables.names import PACKAGES, declared, derived, names, title_of
from bdbench.tables.tabular import sentence
from bdbench.tables.text import as_latex
from bdbench.tables.write import leaderboard

ATTACK = {"badnets": 0.1, "blend": 0.1, "sig": 0.5, "wanet": 0.1, "trojan": 0.1, "dynamic": 0.1}


def real(defense: str, attack: str, *counts: int, **options: object) -> Record:
    """A record whose attack has the poisoning rate and the target of a real one."""
    record = make_record(defense, attack, *counts, **options)
    name = attack.partition("(")[0]
    if name in ATTACK:
        spec = f"{name}(poisoning_rate={ATTACK[name]}, target=1)"
        record = replace(record, cell=record.cell.with_(attack=spec))
    share = 0.05 if defense in ("ft", "nad") else 0.0
    return replace(record, provenance=record.provenance.with_(clean_fraction=share))


def titled(record: Record, titles: dict[str, str]) -> Record:
    return replace(record, provenance=record.provenance.with_(titles=titles))


ONE = [
    real("none", "badnets", 930, 990),
    real("none", "sig", 920, 960),
    real("cbd(t1=3)", "badnets", 880, 20, 15),
    real("cbd(t1=3)", "sig", 870, 300),
    real("abl", "badnets", 890, 60),
    real("abl", "sig", 880, 300),
    real("my_defense", "badnets", 850, 900),
    real("my_defense", "sig"),
    real("ft", "badnets", 900, 100),
]
HOSTILE = r"m_1(s='\input{x} & \\ # $y$ ~ ^ } { < > | %')"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("β ≥ 0.5 → Ω", r"$\beta$ $\geq$ 0.5 $\to$ $\Omega$"),
        ("\N{GREEK CAPITAL LETTER ALPHA}\N{GREEK SMALL LETTER OMICRON}ω", r"Ao$\omega$"),
        ("\N{MINUS SIGN}1", "$-$1"),
        ("ﬁlter №2", "filter No2"),
        ("é ß e\N{COMBINING ACUTE ACCENT}", "é ß é"),
        ("ạ ά", r"a $\alpha$"),
        ("猫", "猫"),
    ],
)
def test_letters_that_pdflatex_refuses_are_written_in_another_way(text: str, shown: str) -> None:
    assert as_latex(text) == shown


def latex(some: list[Record], label: str = "") -> str:
    return leaderboard(some).latex(label)


def fields(text: str) -> dict[str, list[str]]:
    """The cells of each row of a table, by the first of them."""
    found = [
        re.split(r" (?<!\\)& ", line[:-3]) for line in text.splitlines() if line[-3:] == r" \\"
    ]
    return {cells[0]: cells[1:] for cells in found}


def check_well_formed(text: str) -> None:
    """Fail where LaTeX would stop: at braces, environments, or the number of cells of a row."""
    assert text.isascii() or set(re.findall(r"[^\x00-\x7f]", text)) <= {"é"}
    for line in text.splitlines():
        if line.startswith("%"):
            continue
        assert not re.search(r"(?<!\\)[#$](?!\\|\})", re.sub(r"\$\\?[^$]*\$", "", line)), line
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", re.sub(r"\\\\", "", text)):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{([\w*]+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    for body in re.findall(r"\\begin\{tabular\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        spec = re.match(r"\{([lr]+)\}", body)
        assert spec is not None
        count = len(spec[1])
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) > 2
        for row in rows:
            spans = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", row))
            assert len(re.findall(r"(?<!\\)&", row)) + 1 + spans == count, row
            assert not row.startswith(("[", "*"))


def test_the_leaderboard_equals_the_golden_file(golden: Callable[[str, str], None]) -> None:
    text = latex([*ONE[:3], ONE[4], ONE[8]])
    check_well_formed(text)
    head, body = text.split(r"\begin{tabular}")
    assert head.startswith(r"% Needs \usepackage{booktabs} and \usepackage{adjustbox}.")
    assert r"\begin{table*}" in head
    assert r"\label{tab:leaderboard-toy-wrn16-1}" in head
    assert r"\begin{adjustbox}{max width=\linewidth}" in head
    golden("leaderboard.tex", rf"\begin{{tabular}}{body}")


def test_the_caption_says_in_words_what_is_compared_and_how_to_read_it() -> None:
    (caption,) = re.findall(r"^\\caption\[\{(.*?)\}\]\{(.*)\}$", latex(ONE), re.MULTILINE)
    assert caption[0] == "Backdoor defenses on Toy with WRN-16-1"
    for part in (
        "Backdoor defenses on Toy with WRN-16-1. 30 epochs, fp32, 1 seed.",
        "Attacks as specs: badnets, sig.",
        "Bold: lowest ASR of a section on an attack, if separable from that of no defense; "
        "underlined: second lowest",
        r"\P{} failed, excluded from means: my\_defense on sig (seed 0: RuntimeError).",
    ):
        assert part in caption[1]
    assert "small print" not in caption[1]


def aimed(attack: str, goals: list[int], **parts: Any) -> Record:
    """A record of three classes, with the goal of each."""
    made = make_classified("none", attack, [4, 4, 4], [(4, 0, 0)] * 3)
    assert made.classes is not None
    classes = made.classes.with_(goals=goals)
    return replace(made, classes=classes, diagnostics={"parts": parts})


@pytest.mark.parametrize(
    ("records", "target"),
    [
        ([aimed("badnets", [1, 1, 1]), aimed("blend", [0, 1, 2])], None),
        ([aimed("badnets", [1, 1, 1]), aimed("blend", [1, 1, 1])], 1),
        ([aimed("badnets", [1, 1, 1]), aimed("tact", [0, 1, 1])], 1),
        ([aimed("badnets", [0, 0, 0]), aimed("badnets_all_to_all", [1, 2, 0])], None),
        ([aimed("badnets_all_to_all", [1, 2, 0])], None),
        ([aimed("badnets", [1, 1, 1]), aimed("blend", [2, 2, 2])], None),
        ([aimed("mixed", [1, 1, 1], badnets={}, blend={})], None),
        ([aimed("badnets", [1, 1, 1]), make_record("cbd", "badnets", 880, 20)], None),
        ([aimed("badnets", [1, 1, 1]), make_record("none", "blend")], None),
        ([aimed("badnets", [1, 1, 1]), make_record("none", "none", 940)], 1),
    ],
)
def test_the_caption_states_a_target_only_if_all_attacked_classes_share_it(
    records: list[Record], target: int | None
) -> None:
    found = re.findall(r"The target is [^.]*\.", latex(records))
    assert found == ([] if target is None else [f"The target is class {target}."])


def test_a_heading_has_the_target_unless_the_caption_states_it() -> None:
    one, two = (
        replace(record, labels=record.labels.with_(attack="badnets(target=1)"))
        for record in (aimed("badnets", [1, 1, 1]), aimed("badnets", [1, 2, 1]))
    )
    assert "(target=1)" not in latex([one]).split(r"\begin{tabular}")[1]
    assert "(target=1)" in latex([two]).split(r"\begin{tabular}")[1]


def test_ties_marks_and_states_agree_with_the_markdown() -> None:
    rows = fields(latex(ONE))
    assert rows["CBD"][4:7] == [r"\textbf{2.0}$^\circ$", "87.0", r"\textbf{30.0}"]
    assert rows["ABL"][4:7] == [r"\underline{6.0}", "88.0", r"\textbf{30.0}"]
    assert rows["My defense"][4:7] == ["90.0", "-", r"failed \P{}"]
    close = [real("cbd", "badnets", 880, 20), real("abl", "badnets", 880, 21)]
    assert fields(latex(close))["ABL"][4] == r"\underline{2.1}$^\circ$ $\sim$"


def test_several_seeds_have_intervals_in_small_print() -> None:
    some = [real("cbd", "badnets", 880 + s, 20 + s, seed=s) for s in range(3)]
    text = latex(some)
    check_well_formed(text)
    assert fields(text)["CBD"][3:6] == [
        r"88.1 {\scriptsize $\pm$ 1.2}",
        r"\textbf{2.1} {\scriptsize $\pm$ 0.5}",
        "48.9",
    ]
    assert "in small print the half width of the 95" in text


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_table_of_any_width_is_well_formed(count: int) -> None:
    attacks = [*ATTACK, "none"][:count]
    some = [real(d, a, 900, None if a == "none" else 30) for d in ("none", "cbd") for a in attacks]
    text = latex(some)
    check_well_formed(text)
    assert (r"\begin{table*}" in text) is (count > 1)
    assert ("No attack" in text) is (count == 7)


def test_clean_training_alone_makes_a_table() -> None:
    text = latex([real("none", "none", 940), real("cbd", "none", 900)])
    check_well_formed(text)
    assert "ASR" not in text
    assert fields(text)["CBD"] == [r"\texttt{cbd}", r"0 \%", "1.0", "90.0", "1.0"]


def test_text_of_a_record_is_escaped() -> None:
    titles = {"defense": r"[\x] % _ {", "attack": "*"}
    mine = titled(real(HOSTILE, "badnets", 900, 30), titles)
    text = latex([mine, real("none", "badnets", 900, 990)])
    check_well_formed(text)
    assert r"\input" not in text
    assert r"{}[\textbackslash{}x] \% \_ \{ & \texttt{m\_1(s='\textbackslash{}input\{x\}" in text


@pytest.mark.parametrize(
    ("note", "shown"),
    [
        ("no record of seed 1: ft on sig", "No record of seed 1: ft on sig."),
        ("cbd(t1=3) on sig: it diverged.", "cbd(t1=3) on sig: it diverged."),
        ("lc was lent 3 images", "lc was lent 3 images."),
        ("cbd: a warning. Another.", "cbd: a warning. Another."),
        ("my_defense: a warning", "my_defense: a warning."),
        ("† at chance: all cells", "† at chance: all cells."),
    ],
)
def test_a_footnote_is_a_sentence_of_the_caption(note: str, shown: str) -> None:
    assert sentence(note, ["cbd(t1=3)", "cbd", "lc(target=1)"]) == shown


def test_the_rate_of_an_attack_in_one_class_is_said_to_be_one_of_a_class() -> None:
    some = [real("none", attack, 900, 30) for attack in ("lc", "badnets")]
    rates = {"lc": "lc(poisoning_rate=0.25)", "badnets": "badnets(poisoning_rate=0.1)"}
    some = [
        replace(each, cell=each.cell.with_(attack=rates[each.cell.attack.name])) for each in some
    ]
    assert names(collect(some), "attack") == {"badnets": "BadNets 10 %", "lc": "LC 25 % of class"}


def test_a_bracket_in_a_title_ends_no_argument() -> None:
    wide = [titled(each, {"model": "WRN [16, 1] wide"}) for each in ONE]
    wide = [
        replace(
            each,
            cell=each.cell.with_(model="wide(field=1)"),
            labels=each.labels.with_(model="wide"),
        )
        for each in wide
    ]
    assert r"\caption[{Backdoor defenses on Toy with WRN [16, 1] wide}]{Backdoor" in latex(wide)


def test_a_ratio_over_some_attacks_says_so() -> None:
    some = [real("none", "badnets", 930, 990), real("none", "sig", 920, 980)]
    rows = fields(latex([*some, real("cbd", "badnets", 900, 30)]))
    assert rows["CBD"][-1].endswith("(1 of 2)")
    assert "(" not in rows["No defense"][-1]


def test_each_block_has_a_label_of_its_own() -> None:
    longer = [
        replace(
            one,
            key=f"{n:016x}",
            cell=one.cell.with_(recipe="recipe(epochs=9, batch_size=4)"),
            labels=one.labels.with_(recipe="recipe(batch_size=4)"),
        )
        for n, one in enumerate(ONE)
    ]
    labels = re.findall(r"\\label\{(.*?)\}", latex(ONE + longer))
    assert labels == ["tab:leaderboard-toy-wrn16-1", "tab:leaderboard-toy-wrn16-1-2"]
    assert re.findall(r"\\label\{(.*?)\}", latex(ONE, "tab:a_1")) == ["tab:a_1"]
    assert "9 epochs, batch size 4, fp32, 1 seed." in latex(longer)
    with pytest.raises(InvalidInput, match="invalid label 'a b'"):
        latex(ONE, "a b")


def test_the_command_writes_latex(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for record in ONE:
        records.write(tmp_path, record)
    command = ["table", "leaderboard", "--results", str(tmp_path)]
    assert main(command) == 0
    assert not (tmp_path / "tables/leaderboard.tex").exists()
    assert main([*command, "--latex", "--label", "tab:mine"]) == 0
    assert "tables/leaderboard.tex" in capsys.readouterr().out.splitlines()[-1]
    text = (tmp_path / "tables/leaderboard.tex").read_text()
    check_well_formed(text)
    assert r"\label{tab:mine}" in text


@pytest.mark.parametrize("axis", PACKAGES)
def test_titles_are_read_from_the_source_as_they_are_registered(axis: str) -> None:
    registry = REGISTRIES[axis]
    built_in = [name for name in registry.names() if registry.origin(name) == "built in"]
    titled = {name: title for name in built_in if (title := registry.title(name))}
    assert titled
    assert declared(axis) == titled


@pytest.mark.parametrize(
    ("name", "title"),
    [("strong_cutout", "Strong cutout"), ("StrongCutout", "StrongCutout"), ("_", "_"), ("a", "A")],
)
def test_a_title_is_derived_where_there_is_none(name: str, title: str) -> None:
    assert derived(name) == title


@pytest.mark.parametrize(
    ("titles", "title"),
    [
        ({"defense": "My Defense"}, "My Defense"),
        ({"defense": ""}, "Mine"),
        ({"defense": "x" * 61}, "Mine"),
        ({"defense": "a\nb"}, "Mine"),
        ({}, "Mine"),
    ],
)
def test_the_record_has_the_title_of_a_plugin_that_is_not_installed(
    titles: object, title: str
) -> None:
    record = titled(real("mine", "badnets", 900, 30), titles)
    assert title_of(record, "defense") == title


def test_plugins_with_equal_titles_are_written_as_specs() -> None:
    some = [real("cbd", "badnets", 900, 30), real("cbd(t1=3)", "badnets", 900, 30, seed=1)]
    assert names(collect(some), "defense") == {"cbd": "CBD", "cbd(t1=3)": "CBD (t1=3)"}
    twins = [real("a_b", "badnets", 900, 30), real("A_b", "badnets", 900, 30, seed=1)]
    assert set(names(collect(twins), "defense").values()) == {"a_b", "A_b"}

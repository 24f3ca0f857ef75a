"""The report as files: what its pages have, where its links lead, and what it leaves alone."""

import base64
import csv
import io
import json
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from builders import ROOT, calls, make_classified, make_mixed, make_record
from PIL import Image

from bdbench.cli import main
from bdbench.models.plugins.errors import InvalidInput
from bdbench.records import files as records
from bdbench.records.count import Count
from bdbench.report.answers import Case
from bdbench.report.comparison import compare
from bdbench.report.format import slug
from bdbench.report.plugins import Description, built_in
from bdbench.report.site import MATRIX, Site, write_report
from bdbench.tables.groups import collect

HOSTILE = "<script>alert(1)</script>"
CURVES = [
    {"epoch": epoch, "clean_accuracy": share, "attack_success_rate": None, "clean_loss": loss}
    for epoch, share, loss in [(1, 0.0, 2.0), (2, 0.5, 1.0), (3, None, 1.0), (4, 1.0, 0.0)]
]
SOME = [
    make_record("none", "none", 940, floor=8),
    make_record("none", "badnets", 930, 998, 9),
    make_record("none", "sig", 920, 25, 10, flags=("attack_failed",)),
    make_record("abl", "none", 870, floor=20, seconds=(60.0, 30.0)),
    make_record("abl", "badnets", 880, 20, 15, seconds=(60.0, 30.0)),
    make_record("abl", "sig"),
    make_record("cbd", "badnets", 890, 12, 11, seconds=(0.0, 150.0)),
    make_record("cbd", "sig", 100, 0, 0, flags=("not_finite",), seconds=(0.0, 120.0)),
    make_record("ft", "badnets", 900, 300, 11, flags=("no_op",), seconds=(60.0, 6.0)),
]
SEEDS = [make_record("none", "badnets", 930 + s, 990 + s, 10, s) for s in range(3)]
SEEDS += [
    make_record("nad", "badnets", 900, 200, 11, 0),
    make_record("nad", "badnets", None, seed=1),
]


class Page(HTMLParser):
    """A page of the report: its links, ids, tags, attributes and rows of tables."""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.tags, self.rows, self.attributes = [], [], Counter(), [], set()
        self.text, self.cell = "", None
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        given = dict(attributes)
        self.attributes |= given.keys()
        self.links += [given[name] for name in ("href", "src") if name in given]
        self.ids += [given["id"]] if "id" in given else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell = ""
        if tag == "b" and self.cell is not None:
            self.cell += "**"

    def handle_data(self, data):
        self.text += data
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag == "b" and self.cell is not None:
            self.cell += "**"
        if tag in ("td", "th") and self.cell is not None:
            self.rows[-1].append(" ".join(self.cell.split()))
            self.cell = None


@pytest.fixture
def results(tmp_path):
    """A results folder without records, which tests hand over."""
    return tmp_path / "results"


def report(folder, cells, **options):
    """The report as pages by name."""
    home = write_report(cells, folder, **options).parent
    return {str(path.relative_to(home)): Page(path) for path in home.rglob("*.html")}


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def with_picture(folder):
    (folder / "figures").mkdir(parents=True)
    for name in ("triggers.svg", "triggers.png", "triggers of mine.svg", "losses.png"):
        (folder / "figures" / name).write_text(name)
    return folder


def test_a_flag_of_a_later_version_has_no_mark(tmp_path):
    made = [*SOME, make_record("nad", "badnets", 900, 200, flags=("as_yet_unknown", "no_op"))]
    home = write_report(made, tmp_path).parent
    page = " ".join((home / f"cells/{made[-1].key}.html").read_text().split())
    assert "as_yet_unknown </span> a flag unknown to this version." in page
    assert "no_op §</span> the defense changed nothing." in page
    assert "<dt>as_yet_unknown </dt><dd>1</dd>" in (home / "index.html").read_text()


def test_the_index_has_the_leaderboard(results):
    """Each mean says over how many attacks it is: a reader may hide the column before it."""
    index = report(results, SOME)["index.html"]
    heads = ["defense", "mean CA", "mean ASR", "mean R-Acc", "DER", "clean", "trainings"]
    heads += ["seconds", "x none", "none", "badnets", "sig"]
    start = index.rows.index(heads) + 1
    assert [" | ".join(row) for row in index.rows[start : start + 7]] == [
        "none CA | badnets CA | badnets ASR | sig CA | sig ASR",
        "no clean images",
        "none | 92.5 | 51.1 | 24.4 | - | 0 % | 1.0 | 60.0 | 1.0 | 94.0 | 93.0 | 99.8"
        " | 92.0 | 2.5 ‡",
        "cbd | 89.0 (1 of 2) | 1.2 (1 of 2) | 49.4 (1 of 2) | 97.3 (1 of 2) | 0 % | 1.0"
        " | 150.0 (1 of 3) | 2.5 (1 of 3) | - | 89.0"
        " | **1.2**° | - | not finite ⊘",
        "abl | 88.0 (1 of 2) | 2.0 (1 of 2) | 49.0 (1 of 2) | 96.4 (1 of 2) | 0 % | 1.0"
        " | 90.0 (2 of 3) | 1.5 (2 of 3) | 87.0 | 88.0"
        " | 2.0° ~ | - | failed ¶",
        "with clean images",
        "ft | 90.0 (1 of 2) | 30.0 (1 of 2) | 35.0 (1 of 2) | 83.4 (1 of 2) | 5 % | 1.0"
        " | 66.0 (1 of 3) | 1.1 (1 of 3) | - | 90.0"
        " | **30.0** § | - | -",
    ]
    for note in (
        "⊘ not_finite, excluded from means: cbd on sig (seed 0)",
        "¶ failed, excluded from means: abl on sig (seed 0: RuntimeError)",
        "‡ attack_failed, the trigger rarely works even with no defense: none on sig (seed 0)",
        "§ no_op, the defense changed nothing: ft on badnets (seed 0)",
    ):
        assert note in index.text


def test_the_index_has_heat_maps(results):
    home = write_report(SOME, results).parent
    asr, ca = (home / "index.html").read_text().split('<table class="heat ')[1:]
    fields = re.compile(r'class="(l\d+|off|empty)"><(?:a href="cells/\w+.html"|span)>([^<]+)<')
    assert fields.findall(asr) == [
        *[("l10", "99.8"), ("l0", "1.2"), ("l0", "2.0"), ("l3", "30.0")],
        *[("l0", "2.5"), ("off", "not finite"), ("off", "failed"), ("empty", "-")],
    ]
    assert fields.findall(ca)[:4] == [
        ("l9", "94.0"),
        ("empty", "-"),
        ("l9", "87.0"),
        ("empty", "-"),
    ]


def test_every_link_leads_to_a_file_of_the_folder(results):
    other = [*SEEDS, make_record("<other>", "badnets", 900, 100)]
    odd = replace(make_record("../a b/c#d?e", "badnets", 880, 40), curves=CURVES)
    pages = report(with_picture(results), [*SOME, odd], compared=(Path("other"), other))
    home = (results / "report").resolve()
    assert {"index.html", "compare.html", "defenses/cbd.html"} <= pages.keys()
    followed = 0
    for name, page in pages.items():
        assert len(page.ids) == len(set(page.ids)), name
        for link in page.links:
            parts = urlsplit(link)
            if link == "data:,":
                continue
            assert not parts.scheme, f"{link} on {name}"
            assert not parts.netloc, f"{link} on {name}"
            target = (home / name).parent / unquote(parts.path) if parts.path else home / name
            target = target.resolve()
            assert target.is_relative_to(home), f"{link} on {name}"
            assert target.is_file(), f"{link} on {name}"
            if parts.fragment:
                assert parts.fragment in pages[str(target.relative_to(home))].ids, link
            followed += 1
    assert followed > 100


def test_nothing_is_loaded_from_elsewhere(results):
    for name, content in files(write_report(SOME, results).parent).items():
        text = content.decode()
        assert "://" not in text, name
        assert "@import" not in text, name
        assert not re.search(r"url\(", text), name


def test_every_record_has_a_page_that_the_index_and_its_defense_lead_to(results):
    pages = report(results, SOME + SEEDS[2:])
    cells = {f"cells/{each.key}.html" for each in SOME + SEEDS[2:]}
    assert {name for name in pages if name.startswith("cells/")} == cells
    linked = {link.removeprefix("../") for name in pages for link in pages[name].links}
    assert cells <= linked
    for each in SOME:
        assert f"cells/{each.key}.html" in pages["index.html"].links
        page = pages[f"defenses/{each.labels.defense}.html"]
        assert f"../cells/{each.key}.html" in page.links


def test_a_cell_page_has_every_field_of_its_record(results):
    one = replace(
        SOME[4],
        labels=SOME[4].labels.with_(defense="abl(field=1)"),
        cell=SOME[4].cell.with_(defense="abl(field=1, other='x')"),
        diagnostics={"poisoned_images": 1000, "samples": {"w": {"auroc": 0.987654321}}},
        provenance={"data_sha256": "ab" * 32, "versions": {"torch": "2.11.0"}, "data_notes": []},
        curves=CURVES,
    )
    page = report(results, [SOME[1], one])[f"cells/{one.key}.html"]
    assert "abl(field=1) on badnets" in page.text
    rows = {row[0]: row[1:] for row in page.rows}
    metric = "attack success rateASR: triggered images classified as the target"
    assert rows[metric] == ["**2.0**", "", "1.3 to 3.1", "20 of 1,000", "99.8"]
    assert rows["training the defense fit"] == ["30.0 s"]
    assert rows["passes per training image"] == ["30 forward, 30 backward"]
    assert rows["samples · w · auroc"] == ["0.987654"]
    assert rows["versions · torch"] == ["2.11.0"]
    assert rows["data_notes"] == ["-"]
    assert rows["record"] == [f"records/{one.key}.json"]
    assert [row[1] for row in page.rows if row[0] == "defense"] == ["abl field=1", "abl other='x'"]
    text = " ".join(page.text.split())
    assert text.index("field=1") < text.index("Settings at their defaults") < text.index("other=")
    assert "--defense \"abl(field=1, other='x')\"" in page.text
    assert " --seed 0 --curves --results results/again" in page.text
    assert [row for row in page.rows if row[0] in "1234" and len(row) == 4] == [
        ["1", "0", "-", "2"],
        ["2", "0.5", "-", "1"],
        ["3", "-", "-", "1"],
        ["4", "1", "-", "0"],
    ]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (2, "attack_failed ‡ the trigger rarely works even with no defense"),
        (5, "This cell failed RuntimeError out of memory Traceback"),
        (7, "not_finite ⊘ excluded from means"),
        (8, "no_op § the defense changed nothing"),
    ],
)
def test_a_cell_page_says_what_went_wrong(number, words, results):
    page = report(results, SOME)[f"cells/{SOME[number].key}.html"]
    assert words in " ".join(page.text.split())


def test_a_cell_page_has_the_stages_that_were_measured(results):
    new, old = SOME[:2]
    seconds = {k: v for k, v in old.measured.seconds if k != "capture"}
    old = replace(old, measured=old.measured.with_(seconds=seconds))
    pages = report(results, [new, old])
    row = ["recording and compiling steps capture", "1.0 s"]
    assert row in pages[f"cells/{new.key}.html"].rows
    assert "capture" not in pages[f"cells/{old.key}.html"].text
    assert ["evaluating the network evaluate", "1.0 s"] in pages[f"cells/{old.key}.html"].rows


@pytest.mark.parametrize(
    ("counts", "sentences"),
    [
        ([(5000, 4500, 0)], ["stamps its trigger on 5,000 training images and changes 4,500"]),
        (
            [(5000, 4500, 0), None, (3920, 3900, 0)],
            ["on 3,920 to 5,000 training images and changes 3,900 to 4,500 labels."],
        ),
        ([(50, 0, 10), (50, 0, 20)], ["changes no labels.", "Another 10 to 20 are changed"]),
        ([(50, 0, 0), (50, 4, 0)], ["on 50 training images and changes 0 to 4 labels."]),
        ([(50, None, None)], ["stamps its trigger on 50 training images."]),
        ([None], []),
    ],
)
def test_the_page_of_an_attack_counts_the_images_of_all_its_cells(results, counts, sentences):
    kinds = ("poisoned_images", "relabelled_images", "cover_images")
    some = [make_record("none", "badnets", 930, 990, seed=seed) for seed in range(len(counts))]
    some = [
        replace(each, diagnostics=dict(zip(kinds, own, strict=True)) if own else {})
        for each, own in zip(some, counts, strict=True)
    ]
    text = " ".join(report(results, some)["attacks/badnets.html"].text.split())
    assert all(sentence in text for sentence in sentences)
    assert ("What the attacker does" in text) == bool(sentences)
    kept = "are changed and keep their labels (cover images)."
    assert text.count(kept) == ("Another" in " ".join(sentences))


def test_a_cell_page_says_what_others_published(results):
    own = {"dataset": "cifar10()", "attack": "blend(poisoning_rate=0.1)", "defense": "fp()"}
    one = make_record("fp", "blend", 880, 20, 15)
    one = replace(one, cell=one.cell.with_(**own, model="wrn16_1()"))
    pages = report(results, [SOME[1], one])
    page = pages[f"cells/{one.key}.html"]
    assert ["CBD paper, Table 1", "wrn16_1", "81.6", "87.1", "-"] in page.rows
    assert [row[:2] for row in page.rows if "PreAct-ResNet18" in row] == [
        ["BackdoorBench", "PreAct-ResNet18"],
        ["FT-SAM", "PreAct-ResNet18"],
    ]
    said = "the CBD paper 87.14, BackdoorBench 99.26, FT-SAM 8.32."
    assert f"attack success rate: more than ten points apart {said}" in page.text
    assert "What others published" not in pages[f"cells/{SOME[1].key}.html"].text


@pytest.mark.parametrize(
    ("dataset", "attack", "table"),
    [
        ("cifar10", "badnets(poisoning_rate=0.1)", "1"),
        ("cifar10", "badnets(poisoning_rate=0.05)", "2"),
        ("cifar10", "badnets(poisoning_rate=0.03)", ""),
        ("gtsrb", "badnets(poisoning_rate=0.05)", ""),
        ("cifar10", "adaptive(attack='badnets', poisoning_rate=0.1)", "5"),
        ("cifar10", "adaptive(attack='badnets', poisoning_rate=0.05)", ""),
        ("cifar10", "none", "1"),
    ],
)
def test_a_cell_page_has_the_papers_numbers_of_its_poisoning_rate_only(
    results, dataset, attack, table
):
    one = make_record("cbd", "badnets", 880, 20)
    one = replace(one, cell=one.cell.with_(dataset=dataset, attack=attack, defense="cbd"))
    page = report(results, [one])[f"cells/{one.key}.html"]
    named = [row[0] for row in page.rows if row[0].startswith("CBD paper")]
    assert named == [f"CBD paper, Table {table}"] * bool(table)


def test_seeds_of_a_cell_lead_to_one_another(results):
    page = report(results, SEEDS)[f"cells/{SEEDS[1].key}.html"]
    assert {f"{SEEDS[0].key}.html", f"{SEEDS[2].key}.html"} <= set(page.links)
    assert ["1, this page", "93.1", "99.1", "1.0", ""] in page.rows
    mean = ["mean and 95 % interval", "**93.1** (92.1 to 94.0)", "**99.1** (98.7 to 99.4)"]
    assert [*mean, "**1.0** (0.7 to 1.4)", ""] in page.rows


def test_a_defense_page_has_its_row_and_its_description(results):
    pages = report(results, SOME + SEEDS[3:])
    page = pages["defenses/abl.html"]
    assert ["none", "87.0", "-", "2.0", "90.0", "0"] in page.rows
    assert ["badnets", "88.0", "2.0° ~", "1.5", "90.0", "0"] in page.rows
    assert ["sig", "failed", "failed ¶", "-", "-", "0"] in page.rows
    assert "arXiv:2110.11571" in page.text
    assert ["badnets", "90.0", "**20.0** ¶", "1.1", "60.0", "0, 1"] in pages[
        "defenses/nad.html"
    ].rows


DOG = [[10, 0, 0], [6, 3, 1], [2, 0, 8]]
BARE = make_classified("none", "badnets", [9, 9, 9], [[10, 0, 0], [10, 0, 0], [9, 0, 1]])


def said(record, baseline=None):
    """The answers of a page, by question."""
    return {each.question: each.text for each in Case(record, baseline).answers()}


def test_a_cell_page_answers_in_sentences():
    found = said(make_classified("abl", "badnets", [9, 5, 8], DOG), BARE)
    assert found["Did the attack work?"] == (
        "Yes. With no defense, the trigger works on 95.0 % of the test images of other classes (19 "
        "of 20). Without the trigger, 10.0 % of them get the target label."
    )
    assert found["Did the defense remove the backdoor?"] == (
        "Yes, as far as the test images tell. The attack success rate goes from 95.0 % to 40.0 %, "
        "not separable from the 10.0 % of the same images that get the target label without the "
        "trigger."
    )
    assert found["What did the defense cost?"] == (
        "Clean accuracy drops by 16.7 points, from 90.0 % to 73.3 %, not separable at 95 %."
    )
    suffered = "`dog`: 50.0 % of its clean test images are correct, 90.0 % with no defense."
    assert found["Which class suffers most?"] == suffered
    assert found["How are triggered images classified?"] == (
        "Of 20 triggered images, 8 are classified as `cat`, 11 as their true "
        "class, 1 as another class, most often `ship` (1)."
    )


@pytest.mark.parametrize(
    ("asr", "floor", "before", "start"),
    [
        (10, 9, 990, "Yes, as far as the test images tell."),
        (5, 9, 990, "Yes, as far as the test images tell."),
        (100, 9, 990, "Mostly, but not completely."),
        (700, 9, 990, "In part."),
        (985, 9, 990, "No."),
        (995, 9, 990, "No."),
        (700, 9, None, "Not completely."),
        (9, 9, None, "Not clearly."),
        (9, 9, 300, "There was hardly a backdoor to remove."),
        (290, 9, 300, "There was hardly a backdoor to remove."),
    ],
)
def test_a_defense_is_judged_by_statistical_tests(asr, floor, before, start):
    baseline = None if before is None else make_record("none", "badnets", 930, before)
    found = said(make_record("abl", "badnets", 900, asr, floor), baseline)
    assert found["Did the defense remove the backdoor?"].startswith(start)
    known = "Unknown: these results have no cell with the defense `none`"
    assert found["Did the attack work?"].startswith(known) == (before is None)


@pytest.mark.parametrize(
    ("parts", "answer"),
    [
        ({"a_1": (100, 100), "b_2": (50, 45)}, "Yes, as far as the test images tell."),
        ({"a_1": (100, 100), "b_2": (50, 10)}, "Not of every attack."),
        ({"a_1": (20, 1), "b_2": (100, 99), "c_3": (90, 5)}, "Not of every attack."),
        ({"a_1": (300, 100), "b_2": (50, 10)}, "Mostly, but not completely."),
    ],
)
def test_the_backdoor_of_each_part_of_an_attack_is_looked_for(parts, answer):
    found = said(make_mixed("abl", **parts), make_mixed("none", a_1=(990, 9), b_2=(980, 9)))
    text = found["Did the defense remove the backdoor?"]
    assert text.startswith(answer)
    named = {name for name in parts if f"`{name}`" in text}
    left = {name for name, (asr, floor) in parts.items() if asr > 2 * floor}
    assert named == (left if answer.startswith("Not of") else set())


@pytest.mark.parametrize(
    ("record", "questions"),
    [
        (SOME[0], []),
        (SOME[1], ["Did the attack work?"]),
        (SOME[3], []),
        (SOME[5], ["What happened?"]),
        (
            BARE,
            [
                "Did the attack work?",
                "Which class is worst?",
                "How are triggered images classified?",
            ],
        ),
        (
            SOME[7],
            ["Can it be trusted?", "Did the attack work?", "Did the defense remove the backdoor?"],
        ),
        (
            replace(SOME[4], diagnostics={"warnings": ["w"], "samples": {"kept": {"tpr": 1}}}),
            [
                *("Did the attack work?", "Did the defense remove the backdoor?"),
                *("Did it find the poisoned images?", "Did the defense warn of anything?"),
            ],
        ),
        (
            replace(BARE, diagnostics={"samples": {"kept": {"fpr": 0.1}}}),
            [
                "Did the attack work?",
                "Which class is worst?",
                "How are triggered images classified?",
                "Did it flag clean images?",
            ],
        ),
    ],
)
def test_a_question_is_answered_only_where_the_answer_is_known(record, questions):
    assert list(said(record)) == questions


@pytest.mark.parametrize("flag", ["at_chance", "not_finite"])
def test_a_network_that_cannot_be_trusted_removed_no_backdoor(flag):
    cell = make_record("nad", "badnets", 900, 10, 10, flags=(flag,))
    answer = said(cell, make_record("none", "badnets", 920, 950, 10))
    assert answer["Did the defense remove the backdoor?"].startswith("Not clearly. ")
    assert "its predictions are not to be trusted" in answer["Did the defense remove the backdoor?"]


def test_a_filter_is_judged_by_its_rates_and_its_scores():
    kept = {"tpr": 0.75, "fpr": 0.1, "auroc": 0.6}
    for samples, text in (
        ({"kept": kept}, "It flags 75.0 % of the poisoned training images and 10.0 % of the clean"),
        ({"kept": kept, "z": {"auroc": 0.9876}}, "clean ones; its scores have an AUROC of 0.988."),
    ):
        record = replace(SOME[4], diagnostics={"samples": samples})
        assert text in said(record)["Did it find the poisoned images?"]
    record = replace(SOME[4], diagnostics={"samples": {"kept": {"fpr": 0.0625}}})
    said_so = said(record)["Did it flag clean images?"]
    assert said_so == "It flags 6.2 % of the training images, and none is poisoned."


def test_an_attack_that_hardly_works_is_called_so():
    assert said(SOME[2])["Did the attack work?"].startswith("Hardly. This cell has no defense")


@pytest.mark.parametrize(
    ("asr", "floor", "start"),
    [
        (1000, 1000, "No. "),  # a network that always predicts the target
        (700, 690, "No. "),
        (600, 650, "No. "),
        (700, 400, "Yes. "),
        (990, 9, "Yes. "),
        (300, 9, "Hardly. "),
        (300, 290, "Hardly. "),
    ],
)
def test_an_attack_works_only_if_its_trigger_has_an_effect(asr, floor, start):
    plain = make_record("none", "badnets", 930, asr, floor)
    defended = said(make_record("abl", "badnets", 900, 5, 9), plain)
    for found in (said(plain), defended):
        assert found["Did the attack work?"].startswith(start)
        unmeasurable = found["Did the attack work?"].endswith("the two are not separable.")
        assert unmeasurable == (start == "No. ")
    removed = defended["Did the defense remove the backdoor?"]
    assert removed.startswith("There was hardly a backdoor to remove.") == (start != "Yes. ")


@pytest.mark.parametrize(
    ("after", "before", "text"),
    [
        (Count(900, 1000), 900, "Clean accuracy stays at 90.0 %."),
        (Count(90_003, 100_000), 900, "Clean accuracy stays at 90.0 %."),
        (Count(89_960, 100_000), 900, "Clean accuracy stays at 90.0 %."),
        (Count(90_040, 100_000), 900, "Clean accuracy stays at 90.0 %."),
        (Count(8995, 10_000), 900, "Clean accuracy stays at 90.0 %."),
        (Count(8994, 10_000), 900, "Clean accuracy drops by 0.1 points, from 90.0 % to 89.9 %"),
        (Count(901, 1000), 900, "Clean accuracy rises by 0.1 points"),
        (Count(899, 1000), 900, "Clean accuracy drops by 0.1 points"),
    ],
)
def test_an_accuracy_that_does_not_change_neither_drops_nor_rises(after, before, text):
    record = make_record("abl", "badnets", 900, 5)
    record = replace(record, metrics=record.metrics.with_(clean_accuracy=after))
    found = said(record, make_record("none", "badnets", before, 990))
    assert found["What did the defense cost?"].startswith(text)


def test_a_failed_cell_says_how_far_it_came(results):
    record = replace(SOME[5], measured=SOME[5].measured.with_(retries=["killed by `SIGKILL`"]))
    (text,) = said(record).values()
    assert text.startswith("The cell failed after 60 s: RuntimeError. The last stage reached is")
    charged = record.measured.seconds.with_(undefended=7200.0)
    unknown = replace(record, measured=record.measured.with_(seconds=charged, started="noon"))
    (text,) = said(unknown).values()
    assert text.startswith("The cell failed: RuntimeError. ")
    page = report(results, [SOME[1], record])[f"cells/{record.key}.html"]
    assert "An earlier attempt failed: killed by SIGKILL." in page.text


def test_a_cell_page_has_its_classes(results):
    record = make_classified("abl", "badnets", [9, 5, 8], DOG)
    page = report(results, [BARE, record])[f"cells/{record.key}.html"]
    assert ["cat", "10", "90.0", "90.0", "-", "cat, 100.0 %"] in page.rows
    assert ["dog", "10", "50.0", "90.0", "60.0", "cat, 60.0 %"] in page.rows
    assert ["ship", "10", "80.0", "90.0", "20.0", "ship, 80.0 %"] in page.rows
    assert ["dog", "60.0", "30.0", "10.0"] in page.rows


def test_many_classes_have_rows_and_no_matrix(results):
    size = MATRIX + 1
    names = [f"class {n}" for n in range(size)]
    sent = [[3 if to == n else 0 for to in range(size)] for n in range(size)]
    record = make_classified("none", "badnets", [3] * size, sent, names)
    page = report(results, [record])[f"cells/{record.key}.html"]
    assert ["class 20", "3", "100.0", "0.0", "class 20, 100.0 %"] in page.rows
    assert "Predicted labels of triggered images" not in page.text


ABOUT = """\
Mine, after Somebody, 2030, with `code` and <b>HTML</b>.

- a [link](http://elsewhere) and ![a picture](http://elsewhere/x.png)
- `more`
"""
SETTINGS = "rate: in (0, 1],\n    `paper`\n<i>: no field"


def telling(record, about=ABOUT, **given):
    texts = {"about": about, "settings": SETTINGS, "origin": "mine.py"}
    return replace(record, plugins={"attack": texts, "defense": texts}, **given)


def test_plugins_that_are_not_installed_have_pages_from_their_records(results):
    old = make_record("mine", "own", 900, 20)
    measured = old.measured.with_(ended="2031-01-01T00:00:00+00:00")
    new = telling(make_record("mine", "own", 900, 20, seed=1), measured=measured)
    newer = measured.with_(ended="2032-01-01T00:00:00+00:00")
    newest = telling(make_record("mine", "own", 900, 20, seed=2), "Newest.\n", measured=newer)
    pages = report(results, [old, new])
    for name in ("attacks/own.html", "defenses/mine.html"):
        page = pages[name]
        assert "with code and <b>HTML</b>." in page.text
        assert "a [link](http://elsewhere)" in page.text
        assert page.tags["li"] == 2
        assert page.tags["img"] == 0
        assert "`" not in page.text
        assert "in (0, 1], paper" in page.text
        assert "Source: mine.py" in page.text
    assert "Mine, after Somebody, 2030, with code" in pages["index.html"].text
    assert "Newest." in report(results, [old, new, newest])["defenses/mine.html"].text


def test_older_records_get_the_description_of_built_in_plugins(results):
    pages = report(results, [SOME[1], SOME[6], make_record("stranger", "badnets", 900, 9)])
    assert "causality-inspired" in pages["defenses/cbd.html"].text
    assert "critic_weight" in pages["defenses/cbd.html"].text
    assert "lower right corner" in pages["attacks/badnets.html"].text
    assert "it is not installed here" in pages["defenses/stranger.html"].text
    assert "no description in these records" in pages["index.html"].text


@pytest.mark.parametrize("name", ["mine", "base", "__init__", "../benchmark/cli", "", HOSTILE])
def test_only_a_built_in_defense_has_a_description(name):
    assert built_in("defense", name) == Description()
    assert built_in("defense", "cbd(t1=3)").summary.startswith("CBD, ")


def picture(side=4, images=2):
    content = io.BytesIO()
    Image.new("RGB", (side, side * images), "white").save(content, format="png")
    return base64.b64encode(content.getvalue()).decode()


def pictured(record, png):
    return replace(record, example={"row": 3, "label": 1, "goal": 0, "png": png})


def test_the_trigger_is_shown_beside_the_clean_image_and_cells_share_it(results):
    cells = [pictured(each, picture()) for each in (BARE, SOME[4])]
    pages = report(results, cells)
    assert len(list((results / "report/pictures").iterdir())) == 3
    for name in (*(f"cells/{each.key}.html" for each in cells), "attacks/badnets.html"):
        assert pages[name].tags["img"] == 3
        assert "Test image 3" in pages[name].text
    assert (
        "of class dog. With the trigger, a backdoored network should classify it as cat"
        in pages[f"cells/{BARE.key}.html"].text
    )
    assert "bdbench data preview" not in pages[f"cells/{BARE.key}.html"].text


@pytest.mark.parametrize(
    "png",
    ["", "no base64!", "AAAA", picture(images=1, side=5), picture(side=300), picture()[:60]],
)
def test_a_damaged_picture_is_left_out_and_a_page_says_how_to_get_one(png, results):
    one = pictured(SOME[4], png)
    page = report(results, [SOME[1], one])[f"cells/{one.key}.html"]
    assert page.tags["img"] == 0
    assert "bdbench data preview badnets --dataset toy" in page.text


def test_tables_can_be_downloaded(results):
    odd = make_record("=cmd()", "a_b & c", 900, 20)
    home = write_report([*SOME, odd], results, compared=(Path("other"), SOME[1:2])).parent
    for stem in ("tables/table-1", "tables/comparison", "defenses/abl", "attacks/badnets"):
        rows = list(csv.DictReader((home / f"{stem}.csv").read_text().splitlines()))
        assert len(rows) == len(json.loads((home / f"{stem}.json").read_text()))
        tex = (home / f"{stem}.tex").read_text()
        if stem != "tables/table-1":
            assert tex.count(r" \\") == len(rows) + 1
    board = list(csv.DictReader((home / "tables/table-1.csv").read_text().splitlines()))
    assert {row["defense"] for row in board} >= {"none", "abl", "'=cmd()"}
    assert next(row["badnets ASR"] for row in board if row["defense"] == "cbd") == "1.2"
    tex = (home / "tables/table-1.tex").read_text()
    assert all(rf"\texttt{{{name}}}" in tex for name in ("none", "abl", "cbd"))
    assert r"a\_b \& c" in tex
    key = SOME[4].key
    assert records.read(home / f"cells/{key}.json") == SOME[4]
    assert "metrics,attack_success_rate,hits,20" in (home / f"cells/{key}.csv").read_text()


def test_a_download_of_a_cell_has_its_classes_and_curves(results):
    home = write_report([replace(BARE, curves=CURVES)], results).parent
    rows = (home / f"cells/{BARE.key}.csv").read_text().splitlines()
    assert "classes,dog,clean_own,9" in rows
    assert "triggered,ship,cat,9" in rows
    assert "curves,epoch 2,clean_accuracy,0.5" in rows
    assert "curves,epoch 3,clean_accuracy," in rows


def test_pages_show_no_backticks(results):
    failed = replace(
        SOME[5], error={"type": "E", "message": "try `--jobs 1`", "traceback": "Traceback"}
    )
    warned = replace(SOME[4], diagnostics={"warnings": ["see `t1`"]})
    cells = [telling(each) for each in (BARE, warned, failed, SOME[6])]
    pages = report(results, cells, compared=(Path("other"), cells))
    kinds = {name.partition("/")[0] for name in pages}
    assert kinds == {"index.html", "compare.html", "attacks", "defenses", "cells"}
    for name, page in pages.items():
        assert "`" not in page.text, name
        assert "<code>" not in page.text, name


def test_every_table_has_a_caption_and_every_head_a_scope(results):
    cells = [replace(BARE, curves=CURVES), *SOME[4:], *SEEDS[1:]]
    home = write_report(cells, results, compared=(Path("other"), SOME)).parent
    for path in home.rglob("*.html"):
        text = path.read_text()
        assert text.count("<table") == text.count("<caption"), path
        assert re.findall(r"<th(?! scope|ead)[^>]*>", text) == [], path


def test_hostile_text_is_shown_and_never_run(results):
    hostile = replace(
        telling(SOME[5], HOSTILE),
        key="f" * 16,
        labels=SOME[5].labels.with_(defense=HOSTILE, dataset='" onmouseover="alert(1)'),
        error={"type": HOSTILE, "message": HOSTILE, "traceback": f"Traceback\n{HOSTILE}"},
        provenance={HOSTILE: HOSTILE, "device": HOSTILE, "data_sha256": "ab" * 32},
        cell=SOME[5].cell.with_(defense=HOSTILE),
        diagnostics={HOSTILE: [HOSTILE, "\ud800"]},
    )
    pages = report(results, [*SOME, hostile], compared=(Path(HOSTILE), [hostile]))
    for name, page in pages.items():
        assert page.tags["script"] == 1, name
        assert not [each for each in page.attributes if each.startswith("on")], name
    for name in ("index.html", "compare.html", f"cells/{hostile.key}.html"):
        assert HOSTILE in pages[name].text
    assert f"Traceback\n{HOSTILE}" in pages[f"cells/{hostile.key}.html"].text
    assert f"defenses/{slug(HOSTILE)}.html" in pages


def test_the_same_records_give_the_same_bytes(tmp_path):
    first = write_report(SOME + SEEDS[1:], tmp_path / "one").parent
    shuffled = random.Random(0).sample(SOME + SEEDS[1:], len(SOME + SEEDS[1:]))
    second = write_report(shuffled, tmp_path / "two", tmp_path / "elsewhere").parent
    assert files(first) == files(second)
    assert str(tmp_path).encode() not in b"".join(files(first).values())
    stamps = {
        path: path.stat().st_mtime_ns for path in first.rglob("*.*") if path.stem != "manifest"
    }
    write_report(shuffled, tmp_path / "one")
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_new_report_removes_only_pages_of_the_earlier_one(results):
    home = write_report(SOME, results, compared=(Path("other"), SEEDS)).parent
    for own in ("notes.html", "cells/mine.html", "defenses/mine.txt"):
        (home / own).write_text("mine")
    before = files(home)
    write_report(SOME[:2], results)
    after = files(home)
    gone = {f"cells/{each.key}" for each in SOME[2:]} | {"compare", "tables/comparison"}
    gone |= {f"attacks/{slug('sig')}", "defenses/abl", "defenses/cbd", "defenses/ft"}
    assert {name.rpartition(".")[0] for name in before.keys() - after.keys()} == gone
    assert after["notes.html"] == after["cells/mine.html"] == after["defenses/mine.txt"] == b"mine"


def test_a_manifest_cannot_have_the_files_of_others_removed(results):
    home = write_report(SOME, results).parent
    kept = [results / "kept.txt", home / "notes.txt"]
    for path in kept:
        path.write_text("mine")
    names = json.loads((home / "manifest.json").read_text())
    names += ["../kept.txt", str(kept[0]), "cells/../../kept.txt", "notes.txt", 3, None]
    (home / "manifest.json").write_text(json.dumps(names))
    write_report(SOME[:1], results)
    assert [path.read_text() for path in kept] == ["mine", "mine"]
    assert not (home / f"cells/{SOME[1].key}.html").exists()


@pytest.mark.parametrize("damaged", ["", "not JSON", "[", '{"index.html": 1}', "3"])
def test_a_folder_without_a_manifest_is_not_overwritten(damaged, results):
    home = write_report(SOME, results).parent
    (home / "manifest.json").write_text(damaged)
    before = files(home)
    with pytest.raises(InvalidInput, match="not written by `bdbench report`; choose another --out"):
        write_report(SOME[:1], results)
    assert files(home) == before


@pytest.mark.parametrize("content", ["", '{"name": "my app"}', "[]", '["main.js"]'])
def test_a_manifest_of_something_else_is_not_overwritten(content, results, tmp_path):
    other = tmp_path / "app"
    other.mkdir()
    (other / "manifest.json").write_text(content)
    with pytest.raises(InvalidInput, match=r"refusing to overwrite .*manifest\.json: it was not"):
        write_report(SOME, results, other)
    assert files(other) == {"manifest.json": content.encode()}


@pytest.mark.parametrize("made", [True, False])
def test_a_report_is_not_written_among_records(made, tmp_path):
    folder = tmp_path / "records"
    if made:
        records.write(tmp_path, SOME[0])
    with pytest.raises(InvalidInput, match="would be read as damaged ones; choose another --out"):
        write_report(SOME, tmp_path, folder)
    assert folder.exists() == made
    assert len(files(folder)) == made


def test_an_interrupted_report_is_finished(results, monkeypatch):
    def stop(path, content):
        if path.parent.name == "cells":
            raise KeyboardInterrupt
        return write(path, content)

    from bdbench.report import folder as module

    write = module.write_atomically
    monkeypatch.setattr(module, "write_atomically", stop)
    with pytest.raises(KeyboardInterrupt):
        write_report(SOME, results)
    monkeypatch.undo()
    home = write_report(SOME, results).parent
    write_report(SOME, results, results / "whole")
    assert files(home) == files(results / "whole")


def test_one_thread_makes_all_pages(results, monkeypatch):
    def render(site, template, **context):
        threads.add(threading.current_thread())
        return made(site, template, **context)

    threads, made = set(), Site._render
    monkeypatch.setattr(Site, "_render", render)
    write_report(SOME, results)
    assert threads == {threading.current_thread()}


def test_a_page_that_is_not_of_a_report_is_not_overwritten(results):
    results.mkdir()
    (results / "index.html").write_text("mine")
    with pytest.raises(
        InvalidInput, match=r"refusing to overwrite .*index\.html: it was not written"
    ):
        write_report(SOME, results, results)
    assert files(results) == {"index.html": b"mine"}


def test_records_that_do_not_belong_together_are_refused(results):
    with pytest.raises(InvalidInput, match=r"no records in .*results/records"):
        write_report([], results)
    with pytest.raises(InvalidInput, match="no records in other/records"):
        write_report(SOME, results, compared=(Path("other"), []))
    twin = replace(SOME[0], cell=SOME[0].cell.with_(seed=7))
    with pytest.raises(InvalidInput, match=f"two records have the key {twin.key}"):
        write_report([SOME[0], twin], results)
    assert not results.exists()


def test_trigger_pictures_are_copied_and_shown(results):
    pages = report(with_picture(results), SOME)
    second = f"pictures/{slug('triggers of mine')}.svg"
    home = results / "report"
    copied = {name: path for name, path in files(home).items() if name.startswith("pictures/")}
    assert copied == {"pictures/triggers.png": b"triggers.png", second: b"triggers of mine.svg"}
    assert {"pictures/triggers.png", second} <= set(pages["index.html"].links)
    assert "../pictures/triggers.png" in pages[f"cells/{SOME[0].key}.html"].links


def test_a_comparison_says_what_differs(results):
    there = [
        make_record("none", "badnets", 930, 998, 9),
        make_record("abl", "badnets", 800, 25, 15),
        replace(make_record("cbd", "badnets", 890, 12), provenance={"data_sha256": "cd" * 32}),
        make_record("abl", "sig", 880, 20),
        make_record("dbd", "badnets", 870, 20),
    ]
    section = compare(collect(SOME), collect(there[:2] + there[3:]))[0]
    assert [group.names["defense"] for group in section.there] == ["dbd"]
    compared = Path("x/past"), there[:2] + there[3:]
    page = report(results, [SOME[1], *SOME[4:6]], compared=compared)["compare.html"]
    assert "Comparison with past" in page.text
    rows = [" ".join(row) for row in page.rows]
    assert "badnets none 93.0 93.0 +0.0 no 99.8 99.8 +0.0 no" in rows
    assert "badnets abl 88.0 80.0 +8.0 yes 2.0 2.5 -0.5 no" in rows
    assert "sig abl - 88.0 - - - 2.0 - -" in rows
    assert "Only there dbd on badnets" in " ".join(page.text.split())
    apart = compare(collect([SOME[6]]), collect([there[2]]))[0]
    assert apart.pairs[0].separable("clean_accuracy") == "other data"


def test_a_report_imports_neither_torch_nor_a_plotting_library(tmp_path):
    for each in SOME:
        records.write(tmp_path, each)
    program = (
        "import sys; from bdbench.cli import main;"
        f"assert main(['report', '--results', {str(tmp_path)!r}]) == 0;"
        "sys.exit(bool({'torch', 'matplotlib', 'pandas'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    assert (tmp_path / "report" / "index.html").is_file()


def test_the_command_says_what_it_wrote_and_what_it_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 2
    assert "no records in results/quick/records" in capsys.readouterr().err
    for each in SOME:
        records.write(Path("results/quick"), each)
    assert main(["report"]) == 0
    assert capsys.readouterr().out == "written: results/quick/report/index.html\n"
    assert main(["report", "--compare", "results/other"]) == 2
    assert "no records in results/other/records" in capsys.readouterr().err
    damaged = records.write(Path("results/other"), SOME[0])
    records.write(Path("results/other"), SOME[1])
    damaged.write_text("{")
    assert main(["report", "--compare", "results/other", "--out", "there"]) == 1
    streams = capsys.readouterr()
    assert damaged.name in streams.err
    assert Path("there/compare.html").is_file()
    assert streams.out == "written: there/index.html\n"


def grid(count):
    """Records of ten attacks, ten defenses and five seeds for each recipe."""
    for number in range(count):
        rest, seed = divmod(number, 5)
        recipe, place = divmod(rest, 100)
        attack, defense = f"attack_{place % 10}", f"defense_{place // 10}"
        made = make_record(defense, attack, 800 + place, number % 1000, seed=seed)
        yield replace(
            made,
            key=f"{number:016x}",
            cell=made.cell.with_(recipe=f"recipe(epochs={recipe + 1}, learning_rate=0.1)"),
            labels=made.labels.with_(recipe=f"recipe(epochs={recipe + 1})"),
            curves=CURVES,
            diagnostics={"samples": {"w": {"auroc": 0.5}}},
            provenance=made.provenance.with_(versions=dict.fromkeys("abcdefgh", "1.0")),
        )


@pytest.mark.parametrize("count", [40, pytest.param(2_500, marks=pytest.mark.slow)])
def test_the_work_grows_with_the_number_of_records_and_no_faster(count, tmp_path):
    called = []
    for part in (count, 4 * count):
        cells = list(grid(part))
        write_report(cells[:1], tmp_path / "warm")
        called.append(calls(lambda cells=cells: write_report(cells, tmp_path / str(len(cells)))))
        pages = (tmp_path / str(part) / "report/cells").glob("*.html")
        assert len(list(pages)) == part
    assert called[1] < 4.3 * called[0]


def test_a_network_that_does_not_answer_the_target_has_no_backdoor_to_show():
    """A low rate then says nothing."""
    lost = make_classified("abl", "badnets", [1, 9, 9], [[1, 5, 4], [0, 9, 1], [0, 1, 9]])
    text = said(lost, BARE)["Did the defense remove the backdoor?"]
    assert text.startswith("Not clearly. The attack success rate goes from 95.0 % to 0.0 %")
    assert "But the network hardly answers `cat` any more, so a low rate says little" in text
    assert "recognises 10.0 % of the clean test images of that class, 90.0 % with no" in text


@pytest.mark.parametrize(("after", "control", "hidden"), [(140, 30, True), (35, 30, False)])
def test_a_backdoor_that_comes_back_was_not_removed(after, control, hidden):
    def with_(record, name, hits):
        return replace(record, metrics=record.metrics.with_(**{name: Count(hits, 1000)}))

    bare = with_(make_record("none", "badnets", 930, 990), "control_success_rate", control)
    found = with_(make_record("abl", "badnets", 900, 19, 18), "reactivated_success_rate", after)
    text = said(found, bare)["Did the defense remove the backdoor?"]
    start = "Not clearly." if hidden else "Yes, as far as the test images tell."
    assert text.startswith(start)
    assert ("But fine-tuning brings a part of it back, see below." in text) == hidden


def test_the_rates_before_and_after_are_of_one_part():
    bare = make_mixed("none", a_1=(1000, 9), b_2=(600, 9))
    text = said(make_mixed("abl", a_1=(36, 9), b_2=(600, 9)), bare)
    assert text["Did the defense remove the backdoor?"].startswith(
        "No. The attack success rate goes from 60.0 % to 60.0 %."
    )


def test_the_images_that_a_trigger_should_turn_are_named():
    rows = [[10, 0, 0], [10, 0, 0], [0, 0, 10]]
    chosen = make_classified("none", "tact", [9, 9, 9], rows, goals=[0, 0, 2])
    assert (
        "the trigger works on 100.0 % of the test images of `dog`"
        in (said(chosen)["Did the attack work?"])
    )
    turned = [[0, 10, 0], [0, 0, 10], [10, 0, 0]]
    every = make_classified("none", "all_to_all", [9, 9, 9], turned, goals=[1, 2, 0])
    assert "of the test images of all classes (30 of 30)" in said(every)["Did the attack work?"]


def test_a_cell_without_an_attack_has_no_success_rate(results):
    clean = make_record("none", "none", 930, 24)
    pages = report(results, [clean])
    assert not [row for row in pages[f"cells/{clean.key}.html"].rows if "2.4" in row[1:2]]
    point = {"epoch": 1, "clean_accuracy": 0.9, "attack_success_rate": 0.024}
    curved = replace(clean, curves=[point])
    assert curved.points == [{"epoch": 1, "clean_accuracy": 0.9}]
    page = report(results, [curved])[f"cells/{clean.key}.html"]
    assert "attack success rate, ASR" not in page.text
    assert clean.attack_success_rate is None
    assert clean.robust_accuracy is None
    assert clean.asr_floor is not None

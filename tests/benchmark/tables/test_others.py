"""Numbers of other benchmarks: a cell finds every number of the file."""

import json
from pathlib import Path

import pytest

import bdbench.tables
from bdbench.attacks.registry import attacks
from bdbench.defenses.registry import defenses
from bdbench.models.plugins.errors import InvalidInput
from bdbench.tables.others import (
    ATTACKS,
    DEFENSES,
    NAMES,
    SHORT,
    SOURCES,
    Other,
    contradictions,
    known,
    others,
)
from bdbench.tables.published import reference

FILE = Path(next(iter(bdbench.tables.__path__))) / "other_benchmarks.json"
DOCUMENT = json.loads(FILE.read_text())
ROWS = [(name, row) for name, source in DOCUMENT["sources"].items() for row in source["rows"]]


def cell(dataset, attack, rate, defense, **fields):
    given = "".join(f", {name}={value!r}" for name, value in fields.items())
    spec = f"{attack}(poisoning_rate={rate}{given})"
    return {"dataset": dataset, "attack": spec, "defense": defense}


@pytest.mark.parametrize(("source", "count"), [("leaderboard", 692), ("ft_sam_paper", 80)])
def test_every_number_is_found_by_its_cell(source, count):
    rows = [row for name, row in ROWS if name == source]
    assert len(rows) == count
    for dataset, rate, attack, defense, *numbers in rows:
        ours, defense = ATTACKS.get(attack, attack), DEFENSES.get(defense, defense)
        if defense.isidentifier():
            basis = {"rate_basis": "dataset"} if attack in ("lc", "sig") else {}
            found = others(cell(dataset, ours, rate, defense, **basis))
        else:
            # Names that no spec can have, such as d-br.
            found = known()[dataset, ours, rate, defense]
        (own,) = (each for each in found if each.source == NAMES[source])
        shares = {SHORT[name]: n for name, n in zip(SHORT, numbers, strict=True) if n is not None}
        assert own == Other(NAMES[source], dataset, ours, rate, defense, shares)


def test_the_file_says_where_its_numbers_come_from():
    assert set(DOCUMENT["sources"]) == set(NAMES)
    assert set(NAMES.values()) == set(SOURCES)
    assert "2025-06-04" in DOCUMENT["sources"]["leaderboard"]["what"]
    assert "2025-06-04" in SOURCES["BackdoorBench"]
    for source in DOCUMENT["sources"].values():
        assert "PreAct-ResNet18" in source["what"]
    assert "arXiv:2304.11823, Table 1" in DOCUMENT["sources"]["ft_sam_paper"]["what"]


def test_attacks_have_our_names_where_there_is_one():
    assert set(ATTACKS.values()) <= set(attacks.names())
    names = {attack for _, attack, *_ in known()}
    strangers = {"blind", "lira"}
    assert names - strangers <= set(attacks.names())
    assert not strangers & set(attacks.names())


def test_defenses_have_our_names_where_there_is_one():
    assert set(DEFENSES.values()) <= set(defenses.names())
    names = {defense for *_, defense in known()}
    strangers = {"d-br", "d-st", "dde", "mbns"}
    assert names - strangers <= set(defenses.names())
    assert not strangers & set(defenses.names())


@pytest.mark.parametrize(
    ("dataset", "rate", "fields", "theirs"),
    [
        ("cifar10", 0.1, {}, 0.01),
        ("cifar10", 0.5, {"rate_basis": "target_class"}, 0.05),
        ("cifar10", 1.0, {}, 0.1),
        ("cifar10", 0.1, {"rate_basis": "dataset"}, 0.1),
        ("gtsrb", 0.1, {}, None),
    ],
)
def test_sig_is_compared_where_the_same_share_is_poisoned(dataset, rate, fields, theirs):
    found = others(cell(dataset, "sig", rate, "none", **fields))
    assert {other.poisoning_rate for other in found} == ({theirs} if theirs else set())
    assert {other.attack for other in found} == ({"sig"} if theirs else set())


@pytest.mark.parametrize(
    "own",
    [
        cell("cifar10", "badnets", 0.2, "ft"),
        cell("toy", "badnets", 0.1, "ft"),
        cell("cifar10", "badnets", 0.1, "cbd"),
        cell("cifar10", "adaptive", 0.1, "ft", epsilon=8.0),
        {"dataset": "cifar10", "attack": "none(poisoning_rate=0.0)", "defense": "ft"},
    ],
)
def test_other_cells_have_no_numbers_of_others(own):
    assert others(own) == ()


def test_other_settings_of_a_cell_do_not_matter():
    plain = others(cell("cifar10", "badnets", 0.1, "ft"))
    assert [other.source for other in plain] == ["BackdoorBench", "FT-SAM"]
    assert others(cell("cifar10(train_images=100)", "badnets", 0.1, "ft(updates=3)")) == plain
    assert others({"dataset": "cifar10", "attack": "badnets", "defense": "ft"}) == plain


def test_a_contradiction_is_named():
    own = cell("cifar10", "blend", 0.1, "fp")
    full = own | {"model": "wrn16_1", "recipe": "recipe()"}
    paper = reference(full).published
    assert contradictions(own, None, others(own)) == {
        "attack_success_rate": "BackdoorBench 99.26, FT-SAM 8.32"
    }
    assert contradictions(own, paper, others(own)) == {
        "clean_accuracy": "the CBD paper 81.57, BackdoorBench 93.17, FT-SAM 92.57",
        "attack_success_rate": "the CBD paper 87.14, BackdoorBench 99.26, FT-SAM 8.32",
    }
    nad = cell("cifar10", "blend", 0.1, "nad")
    assert contradictions(nad, None, others(nad)) == {
        "attack_success_rate": "BackdoorBench 97.69, FT-SAM 55.04"
    }


def test_a_contradiction_names_only_numbers_that_are_far_apart():
    shares = {"a": 80.0, "b": 90.0, "c": 90.5}
    one, two, three = (
        Other(name, "cifar10", "badnets", 0.1, "fp", {"clean_accuracy": share})
        for name, share in shares.items()
    )
    own = cell("cifar10", "badnets", 0.1, "fp")
    assert contradictions(own, None, (one, two)) == {}
    found = contradictions(own, None, (one, two, three))
    assert found == {"clean_accuracy": "a 80, c 90.5"}


def test_a_damaged_spec_is_refused():
    with pytest.raises(InvalidInput, match="expected name or name"):
        others({"dataset": "cifar10", "attack": "badnets(", "defense": "ft"})

"""The paper's numbers agree with its averages, increases and prose, and cells find them."""

import statistics
from dataclasses import replace

import pytest

from bdbench.attacks.registry import attacks
from bdbench.defenses.registry import defenses
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.plugins.spec import Spec
from bdbench.tables import published
from bdbench.tables.published import AVERAGES, INCREASES, NOTES, TABLES, Reference, reference

RECIPES = {
    "cifar10": "recipe(epochs=100, learning_rate=0.1, momentum=0.9, weight_decay=0.0001, "
    "padding=4, flip=True, cutout=2, precision='fp32')",
    "gtsrb": "recipe(epochs=100, learning_rate=0.01, momentum=0.9, weight_decay=0.0001, "
    "padding=4, flip=True, cutout=2, precision='fp32')",
}
RECIPES["imagenet_subset"] = RECIPES["cifar10"]
CLEAN = TABLES[1][0]
ROUNDING = 0.005 + 1e-9


def printed(table, **wanted):
    """The one row of a table with these values."""
    (row,) = (
        row
        for row in TABLES[table]
        if all(getattr(row, name) == value for name, value in wanted.items())
    )
    return row


def cell(row, **changed):
    """The cell of a record made under the paper's conditions for a printed row."""
    attack = row.attack
    rate = row.poisoning_rate or 0.0
    settings = f"poisoning_rate={rate}, target={int(row.dataset == 'gtsrb')}"
    if row.adaptive:
        attack, settings = "adaptive", f"{settings}, attack='{row.attack}'"
    specs = {
        "dataset": f"{row.dataset}(train_images=None)",
        "model": "resnet34" if row.dataset == "imagenet_subset" else "wrn16_1",
        "attack": attacks.canonical(f"{attack}({settings})"),
        "defense": defenses.canonical(row.defense),
        "recipe": RECIPES[row.dataset],
        "seed": 0,
    }
    return specs | changed


def departures(row, **changed):
    return reference(cell(row, **changed)).departures


def test_every_number_is_listed_once():
    every = [row for table in TABLES.values() for row in table]
    assert {table: len(rows) for table, rows in TABLES.items()} == {1: 133, 2: 32, 3: 16, 5: 8}
    places = {(r.table, r.dataset, r.attack, r.defense, r.poisoning_rate) for r in every}
    assert len(places) == len(every)
    for row in every:
        assert (row.seconds is None) == (row.table != 3)
        shares = [row.clean_accuracy, row.attack_success_rate]
        missing = row.table == 3 or (row.table == 5 and row.note == published.ILLEGIBLE)
        assert all((share is None) == missing for share in shares)
        assert all(0 <= share <= 100 for share in shares if share is not None)
        assert (row.poisoning_rate is None) == (row.attack == "none")


def test_cells_of_table_1_give_its_averages_but_for_those_with_a_note():
    notes = {}
    for average in AVERAGES:
        cells = [
            row
            for row in TABLES[1]
            if (row.dataset, row.defense) == (average.dataset, average.defense)
            and row.attack != "none"
        ]
        assert len(cells) == (4 if average.dataset == "imagenet_subset" else 6)
        wrong = []
        for name, metric in (("ASR", "attack_success_rate"), ("CA", "clean_accuracy")):
            mean = statistics.fmean(getattr(row, metric) for row in cells)
            if abs(mean - getattr(average, metric)) > ROUNDING:
                wrong.append(f"{name} {mean:.2f}")
        if wrong:
            place = (1, average.dataset, "average", average.defense)
            notes[place] = f"the printed cells give {' and '.join(wrong)}"
            assert average.note == notes[place]
    assert len(AVERAGES) == 21
    assert notes == {place: note for place, note in NOTES.items() if place[2] == "average"}


def test_seconds_of_table_3_give_its_increases():
    assert len(INCREASES) == 8
    for (dataset, attack), increase in INCREASES.items():
        bare, cbd = (
            printed(3, dataset=dataset, attack=attack, defense=defense).seconds
            for defense in ("none", "cbd")
        )
        assert round(100 * (cbd - bare) / bare, 1) == increase


def test_the_tables_agree_with_the_prose():
    """Section 5.2 for Tables 1 and 2, section 5.3 for Table 5."""
    ours = [row.attack_success_rate for row in AVERAGES if row.defense == "cbd"]
    assert ours == [1.60, 1.82, 0.91]
    half = {"table": 2, "poisoning_rate": 0.5}
    for attack, bare, asr in (
        ("badnets", 79.45, 1.47),
        ("trojan", 72.83, 2.31),
        ("blend", 69.67, 8.14),
        ("wanet", 67.25, 8.75),
    ):
        none = printed(**half, attack=attack, defense="none")
        assert (none.attack_success_rate, none.clean_accuracy) == (100, bare)
        assert printed(**half, attack=attack, defense="cbd").attack_success_rate == asr
    assert printed(**half, attack="blend", defense="cbd").clean_accuracy == 85.56
    assert printed(**half, attack="wanet", defense="cbd").clean_accuracy == 70.43
    adaptive = [printed(5, attack="badnets", defense=name) for name in ("none", "cbd")]
    assert [row.attack_success_rate for row in adaptive] == [99.62, 4.31]
    assert [row.clean_accuracy for row in adaptive] == [84.55, 84.19]


def test_notes_say_what_contradicts_a_number():
    row = printed(1, dataset="gtsrb", attack="wanet", defense="cbd")
    assert row.attack_success_rate == 3.13
    assert row.note == "section 5.2 prints ASR 3.41 instead of 3.13"
    noted = {
        (row.table, row.dataset, row.attack, row.defense): row.note
        for row in (*AVERAGES, *(row for table in TABLES.values() for row in table))
        if row.note
    }
    assert noted == NOTES


@pytest.mark.parametrize("table", TABLES)
def test_a_cell_under_the_papers_conditions_finds_its_number(table):
    for row in TABLES[table]:
        assert reference(cell(row), table) == Reference(row, ())
        if table != 3:
            assert reference(cell(row)) == Reference(row, ())


def test_a_row_of_the_cells_own_rate_comes_first():
    row = printed(1, dataset="cifar10", attack="badnets", defense="cbd")
    fifth = printed(2, attack="badnets", defense="cbd", poisoning_rate=0.2)
    changed = cell(row, attack="badnets(poisoning_rate=0.2, target=0, pattern='grid', margin=0)")
    assert reference(changed) == Reference(fifth, ())
    other = ("badnets: poisoning_rate=0.2 instead of 0.1",)
    assert reference(changed, 1) == Reference(row, other, same_rate=False)
    assert reference(changed, 1).printed("clean_accuracy") is None
    assert reference(changed).printed("clean_accuracy") == 84.35
    third = cell(row, attack="badnets(poisoning_rate=0.3, target=0)")
    assert reference(third) == Reference(
        row, ("badnets: poisoning_rate=0.3 instead of 0.1",), same_rate=False
    )
    assert reference(third, 2) is None
    assert reference(cell(row), 2) is None
    assert reference(cell(row), 5) is None


@pytest.mark.parametrize(
    ("changed", "phrases"),
    [
        ({"dataset": "cifar10(train_images=10000)"}, ["10,000 of 50,000 images"]),
        ({"dataset": "cifar10(train_images=50000)"}, []),
        ({"model": "resnet18(mean=0.0)"}, ["model resnet18 instead of wrn16_1"]),
        ({"recipe": "recipe(epochs=30)"}, ["epochs 30 instead of 100"]),
        ({"recipe": "recipe(updates=0.1)"}, ["updates 0.1 instead of 1.0"]),
        ({"recipe": "recipe(batch_size=64, drops=(0.8,), nesterov=False)"}, []),
        (
            {"recipe": "recipe(learning_rate=0.01, momentum=0.0, weight_decay=0.0005)"},
            [
                "momentum 0.0 instead of 0.9",
                "weight_decay 0.0005 instead of 0.0001",
                "learning_rate 0.01 instead of 0.1",
            ],
        ),
        (
            {"recipe": "recipe(padding=0, flip=False, cutout=0, precision='bf16')"},
            ["no random crop", "no horizontal flip", "no cutout", "precision bf16"],
        ),
        ({"attack": "badnets(poisoning_rate=0.1, target=3)"}, ["badnets: target=3 instead of 0"]),
        (
            {"attack": "badnets(pattern='white', margin=0)"},
            ["badnets: pattern='white' instead of 'grid'"],
        ),
        (
            {"defense": "cbd(t1=25, beta=0.0001, select='cv')"},
            ["cbd: t1=25 instead of 5", "cbd: select='cv' instead of 'fixed'"],
        ),
    ],
)
def test_each_departure_is_a_short_phrase(changed, phrases):
    row = printed(1, dataset="cifar10", attack="badnets", defense="cbd")
    found = reference(cell(row, **changed))
    of_methods = changed.keys() <= {"attack", "defense"}
    assert found == Reference(row, tuple(phrases), same_setting=of_methods or not phrases)


def test_gtsrb_without_mirrored_signs_is_the_papers_setting():
    row = printed(1, dataset="gtsrb", attack="blend", defense="none")
    unmirrored = RECIPES["gtsrb"].replace("flip=True", "flip=False")
    assert reference(cell(row, recipe=unmirrored)).same_setting
    short = unmirrored.replace("100", "12")
    assert not reference(cell(row, recipe=short)).same_setting


def test_conditions_differ_between_data_sets():
    gtsrb = printed(1, dataset="gtsrb", attack="blend", defense="none")
    recipe = RECIPES["cifar10"].replace("flip=True", "flip=False")
    assert departures(
        gtsrb,
        dataset="gtsrb(train_images=5000)",
        attack="blend(poisoning_rate=0.1, target=0, alpha=0.1)",
        recipe=recipe,
    ) == (
        "5,000 of 39,209 images",
        "learning_rate 0.1 instead of 0.01",
        "no horizontal flip",
        "blend: target=0 instead of 1",
        "blend: alpha=0.1 instead of 0.2",
    )
    subset = printed(1, dataset="imagenet_subset", attack="sig", defense="nad")
    assert departures(subset, model="wrn16_1") == ("model wrn16_1 instead of resnet34",)


def test_the_hardened_attack_and_its_hardening_may_both_depart():
    row = printed(5, attack="blend", defense="cbd")
    assert departures(
        row, attack='adaptive(poisoning_rate=0.1, attack="blend(alpha=0.3)", epsilon=4.0)'
    ) == ("blend: alpha=0.3 instead of 0.2", "adaptive: epsilon=4.0 instead of 8.0")


def test_the_target_of_no_attack_is_no_departure():
    row = printed(1, dataset="cifar10", attack="none", defense="none")
    assert departures(row, attack="none(poisoning_rate=0.0, target=7)") == ()


PLUGINS = [
    *(("attack", attacks, name) for name in ("badnets", "trojan", "blend", "sig", "dynamic")),
    *(("attack", attacks, name) for name in ("wanet", "adaptive")),
    *(("defense", defenses, name) for name in ("fp", "mcr", "nad", "abl", "dbd", "cbd")),
]


@pytest.mark.parametrize(("axis", "registry", "name"), PLUGINS, ids=[p[2] for p in PLUGINS])
def test_every_setting_is_compared_with_the_default_of_its_class(axis, registry, name):
    row = printed(
        5 if name == "adaptive" else 1,
        dataset="cifar10",
        attack="badnets" if name == "adaptive" or axis == "defense" else name,
        defense="none" if axis == "attack" else name,
    )
    settings = Spec.of(cell(row)[axis]).fields
    defaults = spec.fields_of(registry.factory(name))
    own = settings.keys() - {"poisoning_rate", "target", "attack"}
    assert own
    for field in own:
        changed = str(Spec(name, {**settings, field: "other"}))
        assert departures(row, **{axis: changed}) == (
            f"{name}: {field}='other' instead of {defaults[field].default!r}",
        )


@pytest.mark.parametrize(
    "changed",
    [
        {"dataset": "toy(train_images=4000)"},
        {"attack": "tact(poisoning_rate=0.1)"},
        {"attack": "adaptive(attack='sig(delta=40.0)')"},
        {"defense": "ft(epochs=10)"},
    ],
)
def test_a_cell_that_the_paper_lacks_has_no_reference(changed):
    assert reference(cell(CLEAN, **changed)) is None


def test_a_plugin_of_another_file_has_no_defaults_to_compare_with(monkeypatch):
    row = replace(CLEAN, dataset="elsewhere")
    place = (row.dataset, row.attack, row.defense, row.adaptive)
    monkeypatch.setitem(published.PLACES, place, [row])
    for conditions in (published.MODELS, published.LEARNING_RATES, published.TARGETS):
        monkeypatch.setitem(conditions, "elsewhere", conditions["cifar10"])
    specs = cell(CLEAN, dataset="elsewhere(train_images=1000, seed=1)")
    assert reference(specs).departures == ("1,000 images, not all",)


def test_bad_input_is_refused():
    with pytest.raises(InvalidInput, match="table must be 1, 2, 3 or 5, got 4"):
        reference(cell(CLEAN), 4)
    with pytest.raises(InvalidInput, match="expected name or name"):
        reference(cell(CLEAN, attack="badnets("))

"""What a record keeps of a cell beside its metrics: counts by class, an image, docstrings."""

import base64
import copy
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import make_classified, make_record
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bdbench.attacks.registry import attacks
from bdbench.cells import grid
from bdbench.cells.suites import Suite
from bdbench.cli import main
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.records import files
from bdbench.records.by_class import ByClass
from bdbench.records.count import Count
from bdbench.records.record import decode, encode
from bdbench.trial import evaluation, provenance
from bdbench.trial.evaluation import Answers
from bdbench.trial.example import SIDE, example

NAMES = ("cat", "dog", "ship")
RECORD = make_classified("cbd", "badnets", [9, 8, 7], [[10, 0, 0], [6, 3, 1], [2, 0, 8]])


def answers(labels, goal, clean, triggered):
    return Answers(*(torch.tensor(each) for each in (labels, goal, clean, triggered)))


def test_counts_by_class_by_hand():
    found = answers([0, 0, 1, 1, 1, 2], [0] * 6, [0, 1, 1, 0, 2, 2], [0, 0, 0, 0, 1, 2])
    assert found.by_class(NAMES) == {
        "names": ["cat", "dog", "ship"],
        "images": [2, 3, 1],
        "clean_own": [1, 1, 1],
        "clean_goal": [1, 1, 0],
        "goals": [0, 0, 0],
        "triggered": [{"0": 2}, {"0": 2, "1": 1}, {"2": 1}],
    }


labels = st.integers(0, 4)


@pytest.mark.parametrize("attack", ["none", "badnets(target=3)", "tact", "badnets_all_to_all"])
@given(data=st.lists(st.tuples(labels, labels, labels), min_size=1, max_size=40))
def test_the_metrics_are_the_sums_of_the_classes(attack, data):
    own, clean, triggered = (torch.tensor(column) for column in zip(*data, strict=True))
    goal = attacks.build(attack).goal(own.clone(), 5)
    if bool((goal == own).all()):
        return
    found = Answers(own, goal, clean, triggered)
    classes = ByClass(**found.by_class("abcde"))
    sums = {name: Count(*pair) for name, pair in classes.sums().items()}
    assert sums == found.counts()
    assert sum(classes.destinations().values()) == found.counts()["attack_success_rate"].of


def test_images_of_a_class_with_several_goals_have_no_row():
    assert answers([0, 0], [1, 2], [0, 0], [1, 2]).by_class(NAMES) == {}


class Counting(Classifier):
    """Counts the images that it is asked about."""

    def __init__(self):
        super().__init__(0.0, 1.0)
        self.head = torch.nn.Linear(1, 3)
        self.asked = 0

    def body(self, images):
        self.asked += len(images)
        return [images.mean((1, 2, 3))[:, None, None, None]]

    def embed(self, last):
        return last.flatten(1)


@pytest.mark.parametrize(("change", "asked"), [(0, 20), (1, 40)])
def test_classes_take_no_further_forward_pass(change, asked):
    images = torch.zeros(20, 3, 4, 4, dtype=torch.uint8)
    test = ImageSet(images, torch.arange(20) % 3, 3)
    network = Counting().eval()
    found = evaluation.answers(network, test, images + change, torch.zeros(20, dtype=torch.int64))
    found.counts(), found.by_class(NAMES)
    assert network.asked == asked


def test_what_is_kept_survives_the_disk_and_older_records_keep_their_bytes(tmp_path):
    whole = replace(
        RECORD,
        example={"row": 0, "label": 1, "goal": 0, "png": "AAAA"},
        plugins={"attack": {"about": "text", "settings": "", "origin": "built in"}},
    )
    assert files.read(files.write(tmp_path, whole)) == whole
    document = json.loads(json.dumps(encode(whole)))
    assert decode(document) == whole
    assert {"classes", "example", "plugins"} <= document.keys()
    assert (
        not {"classes", "example", "plugins"} & encode(make_record("cbd", "badnets", 900, 9)).keys()
    )


def damage(*path):
    """Puts the last value where the others lead."""
    *way, last, value = path

    def change(document):
        for step in way:
            document = document[step]
        document[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            damage("classes", {"names": ["cat"]}),
            "classes lacks clean_goal, clean_own",
        ),
        (damage("classes", "names", "cat"), "record.classes.names must be a valid list, got str"),
        (damage("classes", "names", ["cat"]), "record.classes: it has 3 images for 1 names"),
        (damage("classes", "names", 1, 3), "record.classes.names.1 must be a string, got 3"),
        (damage("classes", "images", 0, -1), "images.0 must be greater than or equal to 0, got -1"),
        (damage("classes", "clean_own", 0, 1.5), "clean_own.0 must be a valid integer, got 1.5"),
        (
            damage("classes", "clean_own", 0, 11),
            "classes: it has more clean_own than images",
        ),
        (
            damage("classes", "clean_own", 0, 8),
            "add up to record.metrics.clean_accuracy",
        ),
        (damage("classes", "goals", 0, 3), "record.classes: it has a goal that is not a class"),
        (damage("classes", "triggered", 1, "7", 1), "triggered images that do not add up to those"),
        (damage("classes", "triggered", 1, []), "triggered.1 must be a valid dictionary, got list"),
        (
            damage("classes", "triggered", 1, {"1": 10}),
            "add up to record.metrics.attack_success_rate",
        ),
        (damage("classes", "clean_goal", 1, 2), "do not add up to record.metrics.asr_floor"),
        (damage("classes", [1]), "record.classes must be a valid dictionary, got list"),
        (damage("example", {"row": 0}), "record.example lacks goal, label, png"),
        (damage("example", 1), "record.example must be a valid dictionary, got 1"),
        (
            damage("plugins", {"attack": "text"}),
            "attack must be a valid dictionary, got str",
        ),
        (damage("plugins", {"attack": {"about": "x"}}), "record.plugins.attack lacks origin"),
    ],
)
def test_damage_is_one_line_and_the_file_stays(change, complaint, tmp_path, capsys):
    path = files.write(tmp_path, RECORD)
    document = json.loads(path.read_text())
    del document["checksum"]
    broken = copy.deepcopy(document)
    change(broken)
    path.write_text(json.dumps(broken))
    before = path.read_bytes()
    assert main(["explain", RECORD.key, "--results", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert complaint in said.err
    assert str(path) in said.err
    assert path.read_bytes() == before


def pictures(side):
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 200, (4, 3, side, side), generator=rng, dtype=torch.uint8)


def test_an_example_is_the_first_image_that_is_turned_and_changed():
    images = pictures(16)
    test = ImageSet(images, torch.tensor([0, 1, 2, 1]), 3)
    triggered = images.clone()
    triggered[[0, 2, 3]] += 50
    kept = example(test, triggered, torch.zeros(4, dtype=torch.int64))
    assert (kept["row"], kept["label"], kept["goal"]) == (2, 2, 0)
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(kept["png"]))))
    both = torch.cat([images[2], triggered[2]], dim=1).permute(1, 2, 0)
    assert np.array_equal(found, both.numpy())


def test_where_no_image_changes_there_is_no_example():
    test = ImageSet(pictures(16), torch.tensor([0, 1, 2, 1]), 3)
    assert example(test, test.images, torch.zeros(4, dtype=torch.int64)) == {}
    assert example(test, test.images + 1, test.labels) == {}


@pytest.mark.parametrize("side", [16, 32, 96])
def test_an_example_is_small_whatever_the_images(side):
    """Noise, which no format makes smaller, is the worst case."""
    test = ImageSet(pictures(side), torch.tensor([1, 1, 2, 1]), 3)
    kept = example(test, pictures(side) + 1, torch.zeros(4, dtype=torch.int64))
    with Image.open(io.BytesIO(base64.b64decode(kept["png"]))) as picture:
        assert picture.size == (min(side, SIDE), 2 * min(side, SIDE))
    assert len(kept["png"]) < 2 * 3 * SIDE**2 * 4 / 3 + 500


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ("attack", "WaNet, Nguyen and Tran"),
        ("defense", "NAD, "),
        ("model", "arXiv:1605.07146"),
        ("dataset", "Ten generated shapes"),
    ],
)
def test_a_record_says_what_its_plugins_are(axis, words):
    suite = Suite("", ("toy",), attacks=("wanet",), defenses=("nad",))
    (one,) = grid.cells(suite, "fp32")
    found = provenance.descriptions(one)[axis]
    assert words in found["about"]
    assert found["origin"] == "built in"
    if axis in ("attack", "defense"):
        assert "poisoning_rate: share" in found["settings"] or "updates: " in found["settings"]

"""Charts of training curves: coordinates and ticks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdbench.records.record import METRICS
from bdbench.report import charts

CURVES = [
    {"epoch": epoch, "clean_accuracy": share, "attack_success_rate": None, "clean_loss": loss}
    for epoch, share, loss in [(1, 0.0, 2.0), (2, 0.5, 1.0), (3, None, 1.0), (4, 1.0, 0.0)]
]


def test_charts_have_these_coordinates():
    shares, losses = charts.charts(CURVES)
    (accuracy,), (loss,) = shares.lines, losses.lines
    assert accuracy.path == "M72.0 240.0L254.7 127.0M620.0 14.0"
    assert accuracy.points == [(72.0, 240.0), (254.7, 127.0), (620.0, 14.0)]
    assert (accuracy.name, accuracy.last, shares.y_title) == (
        "clean accuracy, CA",
        "100",
        "percent",
    )
    assert loss.path == "M72.0 14.0L254.7 127.0L437.3 127.0L620.0 240.0"
    assert (loss.name, loss.last, losses.y_title) == ("clean training images", "0", "mean loss")
    assert [label for _, label in shares.y_ticks] == ["0", "20", "40", "60", "80", "100"]
    assert [label for _, label in losses.y_ticks] == ["0", "0.5", "1", "1.5", "2"]
    assert losses.x_ticks == [(72.0, "1"), (254.7, "2"), (437.3, "3"), (620.0, "4")]
    alone = list(charts.charts([{"epoch": 7, "clean_accuracy": 0.5, "attack_success_rate": None}]))
    assert [chart.lines[0].points for chart in alone] == [[(72.0, 127.0)]]
    assert [chart.x_ticks for chart in alone] == [[(72.0, "7")]]
    assert list(charts.charts([{"epoch": 1, "clean_loss": float("inf")}])) == []


@pytest.mark.parametrize("parts", [[], ["a_1", "b_2"], ["a_1", "b_2", "clean_3"]])
def test_no_two_lines_of_a_chart_look_alike(parts):
    """There are four styles; each part of an attack has three metrics of its own."""
    metrics = [f"{name}_{part}" for part in parts for name in METRICS[1:]]
    names = [*METRICS, *metrics, "clean_loss", "poisoned_loss"]
    curves = [{"epoch": n, **dict.fromkeys(names, 0.5), "test_images": 100} for n in (1, 2)]
    made = list(charts.charts(curves))
    shares = "Shares of test images by epoch"
    titles = [shares, *(f"{shares}, {part}" for part in parts), "Mean losses by epoch"]
    assert [chart.title for chart in made] == titles
    assert sum(len(chart.lines) for chart in made) == len(names)
    for chart in made:
        styles = [line.style % 4 for line in chart.lines]
        assert len(set(styles)) == len(styles)


@pytest.mark.parametrize(
    ("epochs", "marks"),
    [
        ((1, 2, 3), "1 2 3"),
        ((1, 5, 37, 100), "10 20 30 40 50 60 70 80 90 100"),
        ((3, 30), "5 10 15 20 25 30"),
        ((7, 8), "7 8"),
        ((990, 1010), "990 992 994 996 998 1000 1002 1004 1006 1008 1010"),
    ],
)
def test_epochs_keep_their_places_and_ticks_are_round(epochs, marks):
    curves = [{"epoch": n, "clean_accuracy": 0.5, "attack_success_rate": None} for n in epochs]
    (chart,) = charts.charts(curves)
    assert " ".join(label for _, label in chart.x_ticks) == marks
    across = (charts.RIGHT - charts.LEFT) / (epochs[-1] - epochs[0])
    assert [x for x, _ in chart.lines[0].points] == [
        round(charts.LEFT + across * (n - epochs[0]), 1) for n in epochs
    ]


@given(st.floats(-1e9, 0), st.floats(1e-9, 1e9))
def test_ticks_enclose_the_values_and_are_few(low, high):
    marks = charts._value_ticks(low, high)
    slack = 1e-6 * (high - low)
    assert marks[0] <= low + slack
    assert marks[-1] >= high - slack
    assert 2 <= len(marks) <= charts.VALUE_TICKS + 3

"""Evaluating a network on test images."""

from __future__ import annotations

from turns import TINY, beside_bare, lend, pictures

from bdbench.models.training.loop import logits

COUNT = 256 if TINY else 2_048


def test_evaluation(benchmark: object) -> None:
    model, data = lend().build().eval(), pictures(COUNT)
    beside_bare(benchmark, "evaluation", lambda: logits(model, data.images), COUNT)

"""Crop, flip and cutout of whole batches, and image by image through PIL."""

from __future__ import annotations

from statistics import median

from turns import BATCH, ROUNDS, TINY, keep, pictures, take_turns, times_as_fast

from bdbench.models.rng import stream
from bdbench.models.training.augment import Augmentation, augment, draw_augmentation, to_float
from bdbench.models.training.reference_loader import batches

COUNT = BATCH * (2 if TINY else 16)


def test_augmentation(benchmark: object) -> None:
    data, how = pictures(COUNT), Augmentation()
    draws = draw_augmentation(COUNT, data.size, how, stream(0, "draws"))
    spans = [(start, start + BATCH) for start in range(0, COUNT, BATCH)]

    def ours() -> None:
        for start, stop in spans:
            part = draws[start:stop]
            to_float(augment(data.images[part.order], part, how))

    def reference() -> None:
        for _ in batches(data.images, data.labels, draws, spans, how, workers=0):
            pass

    seconds = take_turns(benchmark, {"reference": reference, "ours": ours}, ROUNDS)
    for name, times in seconds.items():
        print(f"\naugmentation, {name}: {COUNT / median(times):,.0f} images/s")
    ratios = times_as_fast(seconds["ours"], seconds["reference"])
    keep(benchmark, {"augmentation / PIL without workers": ratios}, images=COUNT, batch_size=BATCH)

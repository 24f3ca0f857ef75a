"""The slow data path gives the same batches as the fast one, and leaves no process behind."""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from contextlib import suppress
from multiprocessing import resource_sharer

import pytest
import torch

from bdbench.models.data import ImageSet
from bdbench.models.rng import stream
from bdbench.models.training import reference_loader
from bdbench.models.training.augment import (
    Augmentation,
    AugmentationDraws,
    augment,
    draw_augmentation,
    to_float,
)
from bdbench.models.training.reference_loader import WORKERS, ImageDraw, batches, image_draws

SPANS = [(0, 25), (25, 50), (50, 57)]


def drawn(size: tuple[int, int], how: Augmentation) -> tuple[ImageSet, AugmentationDraws]:
    """57 images without a black pixel, and draws for them."""
    pixels = torch.randint(1, 256, (57, 3, *size), dtype=torch.uint8, generator=stream(1, "images"))
    return ImageSet(pixels, torch.arange(57) % 10, 10), draw_augmentation(
        57, size, how, stream(2, "draws")
    )


def processes() -> set[int | None]:
    """The child processes that are running."""
    return {child.pid for child in multiprocessing.active_children()}


@pytest.mark.parametrize("cutout", [0, 2, 3])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("size", [(32, 32), (12, 20)])
def test_equals_the_fast_path(size: tuple[int, int], padding: int, flip: bool, cutout: int) -> None:
    how = Augmentation(padding, flip, cutout)
    data, draws = drawn(size, how)
    fast = to_float(augment(data.images[draws.order], draws, how))
    made = list(batches(data.images, data.labels, draws, SPANS, how, workers=0))
    assert [len(labels) for _, labels, _ in made] == [25, 25, 7]
    slow, labels, index = (torch.cat(parts) for parts in zip(*made, strict=True))
    assert torch.equal(slow, fast)
    assert torch.equal(labels, data.labels[draws.order])
    assert torch.equal(index, draws.order)


def test_workers_give_the_batches_of_this_process() -> None:
    how = Augmentation()
    data, draws = drawn((12, 20), how)
    alone, shared = (
        list(batches(data.images, data.labels, draws, SPANS, how, workers)) for workers in (0, 2)
    )
    assert len(alone) == len(shared) == 3
    for one, other in zip(alone, shared, strict=True):
        assert isinstance(other, tuple)
        assert all(map(torch.equal, one, other))
        images, labels, index = other
        assert images.dtype == torch.float32
        assert images.is_contiguous()
        assert labels.dtype == index.dtype == torch.int64


def test_workers_need_neither_a_socket_nor_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket needs a short TMPDIR, and a container may have a small /dev/shm."""

    def refuse(*_: object) -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(resource_sharer, "DupFd", refuse)
    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", refuse)
    monkeypatch.setattr(torch.UntypedStorage, "_new_using_fd_cpu", refuse)
    how = Augmentation()
    data, draws = drawn((12, 20), how)
    made = []

    def load() -> None:
        with suppress(RuntimeError):
            made.extend(batches(data.images, data.labels, draws, SPANS, how, workers=1))

    # A worker that cannot send a batch leaves its loader waiting for ever.
    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(20)
    assert len(made) == 3


def test_a_pass_may_start_and_end_anywhere_in_the_draws() -> None:
    how = Augmentation()
    data, draws = drawn((12, 20), how)
    given = (data.images, data.labels, draws)
    whole, rest = (list(batches(*given, spans, how, workers=0)) for spans in (SPANS, SPANS[1:]))
    assert len(rest) == 2
    for one, other in zip(whole[1:], rest, strict=True):
        assert all(map(torch.equal, one, other))


def test_the_sampler_sends_the_draws_image_by_image() -> None:
    columns = torch.tensor([[2, 0, 1], [8, 0, 3], [0, 7, 4], [1, 0, 1], [5, 6, 7], [9, 10, 11]])
    rows = list(image_draws(AugmentationDraws(*columns), [(0, 2), (2, 3)]))
    assert rows == [[(2, 8, 0, 1, 5, 9), (0, 0, 7, 0, 6, 10)], [(1, 3, 4, 1, 7, 11)]]
    assert rows[1][0] == ImageDraw(position=1, top=3, left=4, mirrored=1, row=7, column=11)


def test_neither_images_nor_global_generator_change() -> None:
    how = Augmentation()
    data, draws = drawn((12, 20), how)
    before = data.images.clone()
    torch.manual_seed(3)
    follows = torch.rand(1)
    torch.manual_seed(3)
    for workers in (0, 1):
        made = list(batches(data.images, data.labels, draws, SPANS, how, workers))
        for images, _, _ in made:
            images.zero_()
    assert torch.equal(torch.rand(1), follows)
    assert torch.equal(data.images, before)


def test_workers_end_with_the_pass_and_when_it_is_dropped() -> None:
    how = Augmentation()
    data, draws = drawn((12, 20), how)
    spans = [(n, n + 1) for n in range(57)]
    before = processes()
    made = batches(data.images, data.labels, draws, spans, how, workers=2)
    assert processes() == before
    next(made)
    assert len(processes() - before) == 2
    del made
    assert processes() == before
    assert len(list(batches(data.images, data.labels, draws, SPANS, how, workers=2))) == 3
    assert processes() == before


def test_only_the_warnings_of_starting_workers_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of one core, and a Python that warns of forks."""
    fork = os.fork

    def warn_and_fork() -> int:
        warnings.warn(
            "This process (pid=7) is multi-num_threads, use of fork() may lead to deadlocks in the "
            "child.",
            DeprecationWarning,
            stacklevel=2,
        )
        return fork()

    monkeypatch.setattr(os, "fork", warn_and_fork)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    how = Augmentation()
    data, draws = drawn((12, 20), how)
    with pytest.warns(UserWarning, match="suggested max number of worker"):
        torch.utils.data.DataLoader([0], num_workers=WORKERS)
    before = processes()
    made = batches(data.images, data.labels, draws, SPANS, how)
    next(made)
    assert len(processes() - before) == WORKERS
    made.close()

    monkeypatch.setattr(
        reference_loader, "image_draws", lambda *_: warnings.warn("other", stacklevel=1)
    )
    with pytest.raises(UserWarning, match="other"):
        next(batches(data.images, data.labels, draws, SPANS, how))

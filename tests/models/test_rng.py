"""Named random streams."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from bdbench.models.data import ImageSet
from bdbench.models.registry import models
from bdbench.models.rng import derive, global_seed, stream
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.loop import train
from bdbench.models.training.recipe import Recipe

CPU = torch.device("cpu")


def draw(generator: torch.Generator) -> list[int]:
    return torch.randint(1_000_000, (8,), generator=generator).tolist()


def test_a_stream_depends_on_seed_and_every_word() -> None:
    assert draw(stream(0, "poison")) == draw(stream(0, "poison"))
    streams = [(0, "poison"), (1, "poison"), (0, "draws"), (0, "poison", "x"), (0, "poisonx")]
    assert len({tuple(draw(stream(*words))) for words in streams}) == len(streams)


def test_words_do_not_run_together() -> None:
    assert derive(0, "a", "bc") != derive(0, "ab", "c")


def test_the_global_generator_is_restored_after_a_block() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with global_seed(0, "weights"):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with global_seed(0, "weights"):
        assert torch.equal(torch.rand(3), first)


def test_threads_that_train_in_parallel_are_independent(images: ImageSet) -> None:
    recipe = Recipe(epochs=1, batch_size=20, learning_rate=0.05)

    def one(seed: int) -> Tensor:
        torch.set_num_threads(1)
        context = TrainingContext(recipe, CPU, partial(models.build("wrn16_1").build, 10, 32), seed)
        made = train(context.build(), images, recipe, context.rng("classifier"))
        return torch.cat([values.detach().flatten() for values in made.parameters()])

    alone = [one(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(one, range(3)))
    assert all(map(torch.equal, alone, together))
    assert not torch.equal(alone[0], alone[1])


def test_purposes_have_streams_of_their_own() -> None:
    context = TrainingContext(
        Recipe(), torch.device("cpu"), partial(models.build("wrn16_1").build, 10, 16), 0
    )
    one, other = (torch.rand(8, generator=context.rng(name)) for name in ("a", "b"))
    assert not torch.equal(one, other)

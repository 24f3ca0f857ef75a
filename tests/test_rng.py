"""Named random streams."""

from __future__ import annotations

import torch

from models.rng import derive, global_seed, stream


def draw(generator: torch.Generator) -> list[int]:
    return torch.randint(1_000_000, (8,), generator=generator).tolist()


def test_a_stream_depends_on_seed_and_every_word() -> None:
    assert draw(stream(0, "poison")) == draw(stream(0, "poison"))
    streams = [(0, "poison"), (1, "poison"), (0, "tape"), (0, "poison", "x"), (0, "poisonx")]
    assert len({tuple(draw(stream(*words))) for words in streams}) == len(streams)


def test_words_do_not_run_together() -> None:
    assert derive(0, "a", "bc") != derive(0, "ab", "c")


def test_the_global_generator_is_lent_and_given_back() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with global_seed(0, "weights"):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with global_seed(0, "weights"):
        assert torch.equal(torch.rand(3), first)

"""What decides the numbers is written down in `golden/pinned-*.txt`: whoever changes a default, the
recipe of a stage or a stream of random numbers sees it here, and says it in CHANGELOG.md.

`pytest tests/test_pinned.py --write-golden` writes the files again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from bdbench.attacks.blend import Blend
from bdbench.attacks.registry import attacks
from bdbench.attacks.trojan import Trojan
from bdbench.cells.cell import REGISTRIES, cell
from bdbench.cells.suite_file import written
from bdbench.cells.suites import SUITES
from bdbench.contract.scenarios import CPU, defense_context, random_images
from bdbench.defenses.base import Context
from bdbench.defenses.registry import defenses
from bdbench.models.data import ImageSet
from bdbench.models.rng import derive, stream
from bdbench.models.training.recipe import Recipe
from bdbench.trial.clean_budget import budget_of, clean_budget

Golden = Callable[[str, str], None]
FORMS = {"cbd": ("cbd", "cbd(statistics='anew')")}
"""Forms of a defense with stages that its defaults do not have."""


def test_defaults_and_versions(golden: Golden) -> None:
    """They are part of every key, and of what a name in a paper's table means."""
    lines = [
        f"{kind} {registry.complete(name)} version {registry.version(name)}"
        for kind, registry in REGISTRIES.items()
        for name in registry.names()
        if registry.is_built_in(registry.factory(name))
        # A folder has no images of its own, and a given network no weights.
        and name not in ("folder", "weights")
    ]
    golden("pinned-defaults.txt", "\n".join([*lines, f"recipe {Recipe()}", ""]))


def test_suites(golden: Golden) -> None:
    golden("pinned-suites.txt", "\n".join(f"{name}\n{written(SUITES[name])}" for name in SUITES))


def stages(
    what: str, images: ImageSet, context: Context, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """A line for each training that a defense begins; none of them changes anything."""
    lines = []

    def begin(
        step: Any,
        *data: ImageSet,
        recipe: Recipe,
        rng: torch.Generator,
        state: dict[str, Any],
        until: Any = None,
        updates: int | None = None,
        batch_sizes: Sequence[int] | None = None,
    ) -> None:
        sizes = batch_sizes or [recipe.batch_size] * len(data)
        parts = [part for part in state.values() if isinstance(part, torch.optim.Optimizer)]
        rates = [f"{type(each).__name__} {each.defaults['lr']:g}" for each in parts]
        seen = f"padding {recipe.padding}, flip {recipe.flip}, cutout {recipe.cutout}"
        length = f"{updates} updates" if updates else f"{recipe.epochs} epochs"
        lines.append(
            f"  {length} of {' and '.join(str(len(part)) for part in data)} images in batches of "
            f"{' and '.join(map(str, sizes))}, {', '.join(rates) or 'no optimizer'}, drops "
            f"{recipe.drops}, {seen}"
        )

    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.startswith("bdbench.")]:
            if hasattr(sys.modules[name], "loop") and callable(sys.modules[name].loop):
                patch.setattr(sys.modules[name], "loop", begin)
        defenses.build(what).fit(images, context)
    return lines


# Schedulers of torch miss the optimizer's steps.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_the_stages_of_each_defense(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their lengths, batches, rates and augmentation with the default recipe."""
    images = random_images(200, 16, 10)
    text = []
    for name in defenses.names():
        if not defenses.is_built_in(defenses.factory(name)):
            continue
        for what in FORMS.get(name, (name,)):
            built = defenses.build(what)
            context = replace(
                defense_context(images, 0.0),
                recipe=Recipe(),
                clean=clean_budget(images, built.clean_fraction or 0.05, 0, built.clean_images),
            )
            # What it repeats, such as MixMatch's epochs, is written once.
            text += [what, *dict.fromkeys(stages(what, images, context, monkeypatch))]
    golden("pinned-stages.txt", "\n".join([*text, ""]))


def test_streams(golden: Golden) -> None:
    """Whoever changes how streams are named gets other poisoned sets and other networks."""
    lines = [f"derive(1, 'a', 'b') {derive(1, 'a', 'b')}"]
    for words in (("poison",), ("clean budget",), ("fit", "weights")):
        drawn = torch.randint(0, 2**31, (3,), generator=stream(7, *words)).tolist()
        lines.append(f"stream(7, {', '.join(map(repr, words))}) {drawn}")
    clean = random_images(20, 32, 10)
    for name in ("badnets", "blend", "sig(poisoning_rate=1.0)", "trojan", "wanet"):
        made = attacks.build(name).poison(clean, stream(3, "poison"))
        lines.append(f"{name} poisons {made.mask.nonzero().flatten().tolist()}")
    for name, drawn in (("blend", Blend().pattern(32, 32)), ("trojan", Trojan().cells())):
        lines.append(f"sum of the pattern of {name} {int(drawn.sum())}")
    golden("pinned-streams.txt", "\n".join([*lines, ""]))


@pytest.mark.parametrize("draw", ["clean images", "poison", "networks"])
def test_another_seed_has_other_draws(draw: str) -> None:
    images = random_images(200, 16, 10)
    found = []
    for seed in (0, 1):
        if draw == "clean images":
            chosen = cell("toy", "wrn16_1", "badnets", "ft", Recipe(), seed)
            budget = budget_of(chosen, images)
            assert budget is not None
            found.append(budget.fit.images)
        elif draw == "poison":
            found.append(attacks.build("badnets").poison(images, stream(seed, "poison")).mask)
        else:
            context = defense_context(images, 0.0, seed)
            assert context.device == CPU
            found.append(context.build().head.weight)
    assert found[0].shape != found[1].shape or not torch.equal(*found)

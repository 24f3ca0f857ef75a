"""Methods give the values of `golden/methods.json`, which come from papers and public formulas.

Each test calls the code of a run. Where a run draws a number, the test puts the golden input in its
place, and where a run makes a choice, the test watches the run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from bdbench.attacks import adaptive, dynamic, wanet
from bdbench.attacks.blend import Blend
from bdbench.attacks.bpp import Bpp
from bdbench.attacks.registry import attacks
from bdbench.attacks.trojan import Trojan
from bdbench.defenses import anp, clp, dbd, ft_sam, mcr, nad
from bdbench.defenses.abl import ABL
from bdbench.defenses.anp import ANP
from bdbench.defenses.base import Context
from bdbench.defenses.cbd import CBD, Critic, dependence, sample_weights
from bdbench.defenses.dbd import DBD
from bdbench.defenses.mixmatch import mixmatch_loss
from bdbench.defenses.nad import NAD
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training import feed, loop
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.recipe import Recipe

ENTRIES = json.loads((Path(__file__).parent / "golden" / "methods.json").read_text("utf-8"))
EXPECTED = {entry["name"]: entry["expected"] for entry in ENTRIES}
CPU = torch.device("cpu")
Golden = Callable[..., None]
TESTS: dict[str, Golden] = {}


def golden(name: str) -> Callable[[Golden], Golden]:
    def remember(test: Golden) -> Golden:
        TESTS[name] = test
        return test

    return remember


@pytest.mark.parametrize("name", list(EXPECTED))
def test_golden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    TESTS[name](EXPECTED[name], monkeypatch)


def test_every_golden_value_has_a_test() -> None:
    assert len(ENTRIES) == len(EXPECTED) >= 28
    assert TESTS.keys() == EXPECTED.keys()


def pixels(count: int = 2, side: int = 32) -> Tensor:
    """X of the entries: uint8, X[i] = floor(7919 i / 16) mod 256 in C order."""
    index = torch.arange(count * 3 * side * side)
    return (index * 7919 // 16 % 256).to(torch.uint8).view(count, 3, side, side)


def waves(k: float, *shape: int) -> Tensor:
    """s(k, shape) of the entries: float64, sin(k (i + 1)) in C order."""
    return torch.sin(k * torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)).view(shape)


def close(found: Any, expected: Any, tolerance: float) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        rtol=0.0,
        atol=tolerance,
    )


def lent(recipe: Recipe, classes: int = 10, side: int = 32) -> TrainingContext:
    return TrainingContext(recipe, CPU, partial(models.build("wrn16_1").build, classes, side), 0)


def labelled(labels: Tensor, side: int = 32) -> ImageSet:
    """Images whose pixels are their index, for `as_floats`."""
    count = len(labels)
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, side, side)
    return ImageSet(images.contiguous(), labels, int(max(10, labels.max() + 1)))


def as_floats(monkeypatch: pytest.MonkeyPatch, values: Tensor) -> None:
    """Let networks see values[i] in place of image i of `labelled`."""

    def to_float(images: Tensor) -> Tensor:
        return values[images[:, 0, 0, 0].long()]

    for module in (feed, loop):
        monkeypatch.setattr(module, "to_float", to_float)


class Stub(Classifier):
    """A classifier whose one stage is `layers`."""

    def __init__(self, layers: nn.Module, head: nn.Linear) -> None:
        super().__init__(0.0, 1.0)
        self.layers, self.head = layers, head

    def body(self, images: Tensor) -> list[Tensor]:
        return [self.layers(images)]

    def embed(self, last: Tensor) -> Tensor:
        return last


def rates_of_sgd(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The settings of each later step of SGD."""
    seen: list[dict[str, Any]] = []
    step = torch.optim.SGD.step

    def watched(self: torch.optim.SGD, *args: Any, **kwargs: Any) -> Any:
        group = self.param_groups[0]
        seen.append({name: group[name] for name in ("lr", "momentum", "weight_decay", "nesterov")})
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    return seen


# Attacks.


@golden("badnets_grid")
def badnets_grid(expected: Any, _: pytest.MonkeyPatch) -> None:
    clean = pixels()
    stamped = attacks.build("badnets").trigger(clean)
    assert int(clean.sum()) == expected["before"]
    assert int(stamped.sum()) == expected["after"]
    for channel in stamped[0, :, 29:32, 29:32]:
        assert channel.tolist() == expected["corner"]


@golden("trojan_add_mod_256")
def trojan_add(expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = ((37 * torch.arange(27) + 11) % 256).to(torch.uint8).view(3, 3, 3)
    monkeypatch.setattr(Trojan, "cells", lambda self: cells)
    stamped = attacks.build("trojan").trigger(pixels())
    assert int(stamped.sum()) == expected["after"]
    assert stamped[0, 0, 25:28, 25:28].tolist() == expected["patch"]


@golden("blend_alpha_0.2")
def blend(expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = (13 * torch.arange(32 * 32) % 256).to(torch.uint8).view(1, 32, 32)
    monkeypatch.setattr(Blend, "pattern", lambda self, height, width: pattern)
    exact = 0.8 * pixels().double() + 0.2 * pattern.double()
    close(exact.sum(), expected["unrounded"], 0.01)
    close(exact[0, 0, 0, :4], expected["first"], 1e-9)
    stamped = attacks.build("blend").trigger(pixels())
    assert float((stamped.double() - exact).abs().max()) <= 1


@golden("sig_delta40_f6")
def sig(expected: Any, _: pytest.MonkeyPatch) -> None:
    attack = attacks.build("sig")
    close(attack.wave(32)[:8], expected["v"], 0.5)
    wave = torch.tensor(expected["v"], dtype=torch.float64).repeat(4)
    # Six waves in 32 columns are three in 16, the second half of which has the other sign.
    wave[8:16], wave[24:] = -wave[8:16], -wave[24:]
    exact = (pixels().double() + wave).clamp(0, 255)
    close(exact.sum(), expected["unrounded"], 0.01)
    assert float((attack.trigger(pixels()).double() - exact).abs().max()) <= 1


@golden("poisoned_counts")
def poisoned_counts(expected: Any, _: pytest.MonkeyPatch) -> None:
    labels = torch.arange(5_000) % 10
    clean = ImageSet(torch.zeros(5_000, 3, 16, 16, dtype=torch.uint8), labels, 10)

    def counts(text: str) -> list[int]:
        made = attacks.build(text).poison(clean, stream(0, "golden"))
        return [int(made.mask.sum()), int(made.cover.sum())]

    def victims(text: str) -> int:
        return int((attacks.build(text).goal(labels, 10) != labels).sum())

    assert counts("badnets(poisoning_rate=0.1)") == [expected["dirty"], 0]
    assert counts("sig(poisoning_rate=0.1)") == [expected["sig"], 0]
    for name in ("tact", "adap_blend", "adap_patch"):
        assert counts(name) == expected[name]
    assert victims("badnets") == expected["victims"]["all_to_one"]
    assert victims("tact") == expected["victims"]["tact"]
    assert victims("badnets_all_to_all") == expected["victims"]["all_to_all"]


@golden("wanet_field_and_warp")
def wanet_field(expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    points = waves(3.0, 1, 2, 4, 4)
    monkeypatch.setattr(wanet.torch, "rand", lambda *shape, **_: (points + 1) / 2)
    attack = attacks.build("wanet")
    field = attack.field(32, 32)
    for place, found in zip(((0, 0), (5, 7), (16, 16), (31, 31)), expected["field"], strict=True):
        close(field[place], found, 1e-9)
    warped = attack.trigger(pixels()).double()
    close(warped[0, 0, 8, 8:12], expected["pixels"], 1)
    assert abs(float(warped.sum()) - expected["sum"]) <= 0.5 * warped.numel()
    exact = torch.nn.functional.grid_sample(
        pixels().double(), field[None].expand(2, -1, -1, -1), align_corners=True
    )
    close(exact.sum(), expected["sum"], 0.01)
    assert float((warped - exact).abs().max()) <= 1


@golden("bpp_8_levels")
def bpp_levels(expected: Any, _: pytest.MonkeyPatch) -> None:
    values = torch.arange(0, 256, 15, dtype=torch.uint8).view(1, 1, 1, -1).expand(-1, 3, -1, -1)
    reduced = Bpp(dither=False).trigger(values.contiguous())
    assert reduced[0, 0, 0].tolist() == expected["levels"]


@golden("bpp_dither_6x6")
def bpp_dither(expected: Any, _: pytest.MonkeyPatch) -> None:
    found = Bpp().trigger(pixels(1, 6))[0, 0].long()
    apart = (found - torch.tensor(expected["channel0"])).abs()
    assert float((apart == 0).double().mean()) >= 0.8
    assert set(apart[apart > 0].tolist()) <= {36, 37}


@golden("iad_mask_and_diversity")
def iad(expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, p, q = (waves(k, 2, 3, 4, 4).abs() for k in (0.4, 0.6, 0.8, 1.2))
    m, n = (waves(k, 2, 1, 4, 4).abs() for k in (0.9, 1.5))
    close(dynamic.binary(torch.tensor([0.3, 0.5, 0.6])), expected["threshold"], 1e-5)
    close(dynamic.diversity(one, other, p, q), expected["div_patterns"], 1e-5)
    seen = one / dynamic.DEVIATION, other / dynamic.DEVIATION
    close(dynamic.diversity(*seen, m, n), expected["div_masks"], 1e-5)
    drawn = (math.atanh(0.5) + 10) / 20
    networks: Any = SimpleNamespace(
        mask=lambda x: torch.full_like(x, drawn), pattern=lambda x: torch.full_like(x, 0.9)
    )
    half = torch.full((1, 3, 2, 2), 0.2)
    close(dynamic.blend(half, half, networks), torch.full((1, 3, 2, 2), expected["blend"]), 1e-5)

    # In a run: masks are compared with images as networks see them, patterns as they are drawn.
    scales: list[float] = []
    diversity = dynamic.diversity

    def watched(images: Tensor, *others: Tensor) -> Tensor:
        scales.append(float(images.max()))
        return diversity(images, *others)

    monkeypatch.setattr(dynamic, "diversity", watched)
    clean = ImageSet(torch.full((40, 3, 16, 16), 255, dtype=torch.uint8), torch.arange(40) % 10, 10)
    context = lent(Recipe(epochs=1, batch_size=40, padding=0, cutout=0), side=16)
    attack = dynamic.Dynamic(mask_epochs=1, joint_epochs=1)
    attack.prepare(clean, context, stream(0, "golden"))
    assert scales == [1 / dynamic.DEVIATION, 1.0]


@golden("adaptive_surrogate_lr")
def adaptive_rate(expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = rates_of_sgd(monkeypatch)
    images = pixels(20, 16)
    clean = ImageSet(images, torch.arange(20) % 10, 10)
    attack = adaptive.Adaptive(poisoning_rate=0.5, steps=1)
    attack.prepare(clean, lent(Recipe(batch_size=10), side=16), stream(0, "golden"))
    assert len(seen) == 10 * 2, "two batches in each of ten epochs"
    close([group["lr"] for group in seen], [expected["lr"]] * 20, 1e-9)


# Defenses.


@golden("simclr_nt_xent")
def nt_xent(expected: Any, _: pytest.MonkeyPatch) -> None:
    close(dbd.nt_xent(waves(1.3, 10, 6), 0.5), expected["all_anchors"], 1e-6)


@golden("sce")
def sce(expected: Any, _: pytest.MonkeyPatch) -> None:
    output, labels = 3 * waves(0.7, 6, 10), (3 * torch.arange(6) + 1) % 10
    close(DBD(ce_weight=1.0, rce_weight=0.0).losses(output, labels), expected["ce"], 1e-5)
    close(DBD(ce_weight=0.0, rce_weight=1.0).losses(output, labels), expected["rce"], 1e-5)
    close(DBD().losses(output, labels), expected["sce"], 1e-5)


@golden("mixmatch_sharpen_and_losses")
def mixmatch(expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    guesses = torch.cat([2 * waves(0.9, 3, 4), 2 * waves(1.1, 3, 4)])
    output = torch.cat([2 * waves(0.5, 3, 4), 2 * waves(0.6, 6, 4)])
    answers = iter([guesses, output])
    kept: list[Tensor] = []

    def mix(images: Tensor, targets: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the labelled images as the entry does, and the others not at all."""
        kept.append(targets[3:])
        mixed = 0.7 * one_hot(torch.tensor([1, 0, 3]), 4) + 0.3 * one_hot(
            torch.tensor([2, 2, 1]), 4
        )
        return images, torch.cat([mixed.double(), targets[3:].double()])

    monkeypatch.setattr("bdbench.defenses.mixmatch.mix", mix)
    found = mixmatch_loss(
        lambda images: next(answers),  # type: ignore[arg-type]
        torch.zeros(9, 3, 4, 4),
        torch.tensor([1, 0, 3]),
        torch.ones(9),
        torch.arange(9),
        torch.tensor(15 * 0.25),
        DBD().sharpening,
    )
    close(kept[0], expected["q"] * 2, 1e-6)
    close(found, expected["total"], 1e-6)
    close(expected["Lx"] + 15 * 0.25 * expected["Lu"], expected["total"], 1e-6)


@golden("dbd_simclr_lr")
def dbd_rates(expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch SimCLR and the first step of MixMatch at the lengths of the paper."""
    seen = rates_of_sgd(monkeypatch)
    weights: list[float] = []

    class Enough(Exception):
        pass

    def first(*args: Any) -> Tensor:
        weights.append(float(args[-2]))
        raise Enough

    monkeypatch.setattr("bdbench.defenses.mixmatch.mixmatch_loss", first)
    data = ImageSet(pixels(20, 16), torch.arange(20) % 10, 10)
    defense = DBD(ssl_epochs=10, ssl_learning_rate=0.4, ssl_batch_size=20, semi_epochs=190)
    context = Context(**vars(lent(Recipe(batch_size=20), side=16)))
    with pytest.raises(Enough):
        defense.fit(data, context)
    close([group["lr"] for group in seen], expected["lr"], 1e-9)
    how = {(g["nesterov"], g["momentum"], g["weight_decay"]) for g in seen}
    assert how == {(expected["nesterov"], 0.9, 1e-4)}
    close(weights, [expected["first_lambda_u"]], 1e-6)


@golden("nad_attention_loss")
def nad_loss(expected: Any, _: pytest.MonkeyPatch) -> None:
    ours, theirs = waves(0.8, 2, 3, 4, 4), waves(1.9, 2, 3, 4, 4)
    found = NAD().distillation((0.0, 0.0, 1.0), [ours] * 3, [theirs] * 3)
    close(found, expected["loss"], 1e-7)
    close(nad.attention(ours, 2.0)[0, :4], expected["row"], 1e-6)


@golden("abl_lga")
def abl_lga(expected: Any, _: pytest.MonkeyPatch) -> None:
    output = 3 * waves(0.35, 6, 5)
    labels = output.argmax(1)
    labels[::2] = (labels[::2] + 2) % 5
    close(cross_entropy(output, labels, reduction="none"), expected["ce"], 1e-6)
    close(ABL(isolation="lga").isolation_loss(output, labels), expected["paper"], 1e-6)
    close(ABL().isolation_loss(output, labels), expected["flooding"], 1e-6)
    # Above gamma both forms of the code are equal.
    close(ABL().isolation_loss(output, labels), expected["code"], 1e-6)


@golden("fp_activation_ranking")
def fp_ranking(expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    as_floats(monkeypatch, waves(2.1, 4, 6, 3, 3))
    network = Stub(nn.ReLU(), nn.Linear(6, 2))
    mean = loop.features(network, labelled(torch.zeros(4, dtype=torch.int64)).images).mean(0)
    close(mean, expected["means"], 1e-6)
    assert mean.argsort(stable=True).tolist() == expected["order"]


@golden("mcr_curve_point")
def mcr_point(expected: Any, _: pytest.MonkeyPatch) -> None:
    w1, theta, w2 = ({"w": waves(k, 4)} for k in (0.3, 0.5, 0.7))
    close(mcr.curve(0.3, w1, theta, w2)["w"], expected["phi"], 1e-6)


@golden("clp_lipschitz")
def clp_bounds(expected: Any, _: pytest.MonkeyPatch) -> None:
    convolution, norm = nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5)
    with torch.no_grad():
        convolution.weight.copy_(waves(0.21, 5, 2, 3, 3))
        norm.weight.copy_(waves(0.9, 5))
        norm.get_buffer("running_var").copy_(1 + 0.5 * waves(0.4, 5))
    found = clp.bounds(convolution, norm)
    close(found, expected["bounds"], 1e-4)
    # How many deviations the second channel is above the mean, by the golden threshold of three.
    mean = float(found.mean())
    many = (float(found[1]) - mean) / ((expected["threshold_population"] - mean) / 3)
    assert clp.outliers(found, many - 1e-3).tolist() == [False, True, False, False, False]
    assert not clp.outliers(found, many + 1e-3).any()


@golden("anp_mask_step")
def anp_step(expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    norm, head = nn.BatchNorm2d(3), nn.Linear(3, 2)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * waves(0.6, 3))
        norm.bias.copy_(0.2 * waves(0.8, 3))
        head.weight.copy_(waves(1.7, 2, 3))
        head.bias.copy_(torch.tensor([0.1, -0.2]))
    as_floats(monkeypatch, waves(0.77, 6, 3).float().view(6, 3, 1, 1))
    # The changes start at 0.
    monkeypatch.setattr(anp.torch, "rand", lambda *shape, **_: torch.full(shape, 0.5))
    losses: list[float] = []
    changes: list[tuple[Tensor, Tensor]] = []
    scale, entropy = anp.scale, cross_entropy

    def watched_scale(norms: Any, gain: Tensor, lift: Tensor) -> dict[str, Tensor]:
        changes.append((gain.detach() - 1, lift.detach() - 1))
        return scale(norms, gain, lift)

    def watched_entropy(*args: Tensor) -> Tensor:
        losses.append(float((loss := entropy(*args)).detach()))
        return loss

    monkeypatch.setattr(anp, "scale", watched_scale)
    monkeypatch.setattr(anp, "cross_entropy", watched_entropy)
    clean = labelled(torch.tensor([0, 1, 1, 0, 1, 0]), side=1)
    context = Context(**vars(lent(Recipe(padding=0, cutout=0, flip=False))))
    network = Stub(nn.Sequential(norm, nn.ReLU()), head)
    m = ANP(updates=1).learn_masks(network, clean, context)
    slope, natural, worst = losses
    close([slope, natural, worst], [expected["natural"]] * 2 + [expected["worst"]], 1e-4)
    delta, xi = changes[-1]
    close(delta / 0.4, expected["sign_delta"], 1e-4)
    close(xi / 0.4, expected["sign_xi"], 1e-4)
    close(m, expected["mask"], 1e-4)


@golden("sam_adaptive_epsilon")
def sam(expected: Any, _: pytest.MonkeyPatch) -> None:
    w, g = (waves(0.3, 2, 3), waves(1.1, 4)), (waves(0.9, 2, 3), waves(1.4, 4))
    first, second = ft_sam.ascent(w, g, 2.0)
    close(first, expected["first"], 1e-6)
    close(second, expected["second"], 1e-6)


# CBD.


@golden("cbd_weights")
def cbd_weights(expected: Any, _: pytest.MonkeyPatch) -> None:
    loss_b, loss_c = torch.tensor([[0.001, 0.5, 2.3, 0.02, 1.1], [1.5, 0.4, 0.9, 2, 0]]).double()
    w = sample_weights(loss_b, loss_c)
    close(w, expected["w"], 1e-6)
    close(CBD(rescale=False).weigh(w, loss_c), expected["paper"], 1e-6)
    close(CBD().weigh(w, loss_c), expected["code"], 1e-6)


LOSSES = torch.tensor([[0.02, 0.5, 1.5, 3.0, 0.0, 0.9], [2.3, 1.0, 0.5, 3.0, 0.7, 0.05]]).double()


@golden("cbd_weights_of_equation_6")
def cbd_equation_6(expected: Any, _: pytest.MonkeyPatch) -> None:
    close(sample_weights(*LOSSES), expected, 1e-7)


@golden("cbd_rescaled_weights_and_weighted_loss_train_py_61_64")
def cbd_rescaled(expected: Any, _: pytest.MonkeyPatch) -> None:
    w, losses = sample_weights(*LOSSES), LOSSES[1].clone().requires_grad_()
    # The weights of a run are the gradient of its loss.
    found = CBD().weigh(w, losses)
    (slope,) = torch.autograd.grad(found, losses)
    close(len(losses) * slope, expected["rescaled"], 1e-6)
    close(found.detach(), expected["rescaled_loss"], 1e-6)
    close(CBD(rescale=False).weigh(w, LOSSES[1]), expected["literal_loss"], 1e-6)


@golden("cbd_loss_and_gradient_of_the_rescaled_weighted_cross_e")
def cbd_gradient(expected: Any, _: pytest.MonkeyPatch) -> None:
    f_b = torch.tensor([[4.0, -1.0, 0.0], [0.5, 0.4, 0.1], [0.0, 0.0, 3.0], [1.0, 0.0, -1.0]])
    f_c = torch.tensor([[1.0, -0.5, 0.2], [0.0, 2.0, -1.0], [0.3, 0.3, 0.3], [-1.0, 0.5, 2.5]])
    f_b, f_c, labels = f_b.double(), f_c.double().requires_grad_(), torch.tensor([0, 1, 2, 0])
    loss_b, loss_c = (cross_entropy(f, labels, reduction="none") for f in (f_b, f_c))
    w = sample_weights(loss_b, loss_c.detach())
    loss = CBD().weigh(w, loss_c)
    (slope,) = torch.autograd.grad(loss, f_c)
    close(loss.detach(), expected["loss"], 1e-6)
    close(w / w.mean(), expected["weights"], 1e-6)
    close(slope, expected["grad_logits_C"], 1e-6)


@golden("cbd_critic_bracket_utils_util_py_200_208")
def cbd_bracket(expected: Any, _: pytest.MonkeyPatch) -> None:
    critic = Critic(4).double().eval()
    first, _, second = critic.layers
    with torch.no_grad():
        # Orthonormal rows, which spectral normalisation leaves as they are.
        first.weight = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5]]).double()
        second.weight = torch.tensor([[0.6, 0.8]]).double()
        first.bias.zero_()
        second.bias.zero_()
        critic.train()
        z = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.5, 0.25]]).double()
        r = torch.tensor([[-0.5, 1.0], [2.0, -1.0], [0.0, -3.0]]).double()
        close(dependence(critic, z, r), expected["bdbench_bracket"], 1e-7)


@golden("cbd_authors_spectral_norm_is_the_square_root_of_the_la")
def cbd_spectral_norm(expected: Any, _: pytest.MonkeyPatch) -> None:
    critic, weight = Critic(4).double(), torch.zeros(2, 4).double()
    weight[0, 0], weight[1, 1] = 3.0, 1.0
    first = critic.layers[0]
    with torch.no_grad():
        first.parametrizations.weight.original.copy_(weight)
        for _ in range(50):
            critic(torch.zeros(1, 2).double(), torch.zeros(1, 2).double())
        close(first.weight, weight / expected["true"], 1e-6)


@golden("cbd_three_f_c_steps_of_the_released_code_on_one_batch")
def cbd_steps(expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, as these weights amplify rounding errors a thousand times."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    try:
        recipe = Recipe(epochs=3, batch_size=8, drops=(), padding=0, flip=False, cutout=0)
        context = Context(**vars(lent(recipe)))
        k = torch.arange(8 * 3 * 32 * 32)
        x = 0.5 + 0.5 * torch.sin(0.01 * k) * torch.cos(0.0007 * k)
        as_floats(monkeypatch, x.view(8, 3, 32, 32))
        data = labelled(torch.arange(8))
        f_b, f_c = (phased(context.build(), phase) for phase in (0.0, 0.5))
        found: list[float] = []
        weigh = CBD.weigh

        def watched(self: CBD, w: Tensor, losses: Tensor) -> Tensor:
            found.append(float((loss := weigh(self, w, losses)).detach()))
            return loss

        monkeypatch.setattr(CBD, "weigh", watched)
        close(loop.sample_losses(f_b, data), expected["f_B_losses"], 1e-9)
        f_b.requires_grad_(False)
        CBD(critic_weight=0.0, beta=0.0).train_f_c(f_c, f_b, data, context)
    finally:
        torch.set_default_dtype(torch.float32)
    close(found, expected["losses"], 1e-5)
    close(f_c.head.bias.detach(), expected["head_bias_after"], 1e-5)


@torch.no_grad()
def phased(network: Classifier, phase: float) -> Classifier:
    """Set the weights of the entry, in its order: the 1 x 1 shortcut of a block comes last."""
    named = dict(network.named_parameters())
    order = ["stem.weight"]
    for block in sorted({".".join(n.split(".")[:3]) for n in named if n.startswith("groups.")}):
        parts = ("norm1.weight", "norm1.bias", "conv1.weight", "norm2.weight", "norm2.bias")
        order += [f"{block}.{part}" for part in (*parts, "conv2.weight", "shortcut.weight")]
    order += ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    order = [name for name in order if name in named]
    assert sorted(order) == sorted(named)
    for i, name in enumerate(order):
        k = torch.arange(named[name].numel(), dtype=torch.float64)
        values = 0.1 * torch.sin(0.37 * k + i + phase) + ("norm" in name and "weight" in name)
        named[name].copy_(values.view_as(named[name]))
    return network.eval()

"""I-BAU: the implicit hypergradient against closed forms and unrolled ascent, and slow rounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam
from torch.testing import assert_close

from bdbench.contract import scenarios
from bdbench.defenses import i_bau
from bdbench.defenses.base import CleanBudget, Context
from bdbench.defenses.i_bau import IBAU, hypergradient
from bdbench.defenses.registry import defenses
from bdbench.models.data import ImageSet
from bdbench.models.networks import classifier
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training.feed import Batch
from bdbench.models.training.loop import loop
from bdbench.models.training.recipe import Recipe

SHORT = IBAU(rounds=1, updates=3, batch_size=20, portion=1.0)
RATE = 0.3


class Quadratic:
    """H = -d'Ad/2 + d'(Bt + c) + t'Ct/2, with A positive definite, so that the worst d is
    A^-1 (Bt + c). The eigenvalues of A are 0.5 to 2."""

    def __init__(self) -> None:
        rng = stream(0, "quadratic")
        basis = torch.linalg.qr(torch.randn(5, 5, generator=rng, dtype=torch.float64)).Q
        self.A = basis @ torch.linspace(0.5, 2, 5, dtype=torch.float64).diag() @ basis.T
        self.B, self.c = (torch.randn(5, n, generator=rng, dtype=torch.float64) for n in (3, 1))
        self.C = torch.randn(3, 3, generator=rng, dtype=torch.float64)
        self.theta = torch.randn(3, 1, generator=rng, dtype=torch.float64, requires_grad=True)
        self.elsewhere = torch.randn(5, 1, generator=rng, dtype=torch.float64)

    def value(self, d: Tensor, t: Tensor) -> Tensor:
        return (
            -d.T @ self.A @ d / 2 + d.T @ (self.B @ t + self.c) + t.T @ self.C @ t / 2
        ).squeeze()

    def worst(self, t: Tensor) -> Tensor:
        return torch.linalg.solve(self.A, self.B @ t + self.c)

    def ours(self, d: Tensor, steps: int) -> Tensor:
        d = d.detach().requires_grad_()
        loss = self.value(d, self.theta)
        (found,) = hypergradient(loss, loss, d, [self.theta], steps, RATE)
        return found

    def exact(self, d: Tensor) -> Tensor:
        """dH/dt + B' A^-1 dH/dd: the limit of the iteration, by a linear solve."""
        t = self.theta.detach()
        by_d, by_t = self.B @ t + self.c - self.A @ d, self.B.T @ d + (self.C + self.C.T) @ t / 2
        return by_t + self.B.T @ torch.linalg.solve(self.A, by_d)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_at_the_worst_delta_it_is_the_gradient_of_the_maximum(steps: int) -> None:
    """There dH/ddelta is zero, so that the implicit part is zero too."""
    problem = Quadratic()
    maximum = problem.value(problem.worst(problem.theta), problem.theta)
    (expected,) = torch.autograd.grad(maximum, problem.theta)
    assert_close(problem.ours(problem.worst(problem.theta), steps), expected)
    assert_close(problem.exact(problem.worst(problem.theta.detach())), expected)


def test_the_iteration_converges_to_the_linear_solve() -> None:
    """By a factor of 1 - 0.3 * 0.5 = 0.85 in each step, at least."""
    problem = Quadratic()
    expected = problem.exact(problem.elsewhere)
    assert_close(problem.ours(problem.elsewhere, 300), expected)
    factors = problem.B.T @ torch.linalg.inv(problem.A)
    first = (problem.B @ problem.theta.detach() + problem.c - problem.A @ problem.elsewhere).norm()
    errors = []
    for steps in range(1, 40):
        errors.append(float((problem.ours(problem.elsewhere, steps) - expected).norm()))
        assert errors[-1] <= 0.85**steps * float(torch.linalg.matrix_norm(factors, 2) * first)
    assert errors[-1] < 0.01 * errors[0]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_it_is_the_gradient_through_as_many_steps_of_ascent(steps: int) -> None:
    """Exactly for a quadratic H, from any start."""
    problem = Quadratic()
    d = problem.elsewhere
    for _ in range(steps):
        d = d + RATE * (problem.B @ problem.theta + problem.c - problem.A @ d)
    (expected,) = torch.autograd.grad(problem.value(d, problem.theta), problem.theta)
    assert_close(problem.ours(d, steps), expected)
    direct = problem.ours(d, 0)
    assert float((direct - expected).norm()) > 0.01 * float(expected.norm())


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_the_ascent_is_on_its_own_loss(steps: int) -> None:
    """The gradient of another loss, through as many steps of ascent on H."""
    problem, share = Quadratic(), 0.01

    def outer(d: Tensor, t: Tensor) -> Tensor:
        return share * problem.value(d, t) + (t**3).sum()

    d = problem.elsewhere
    for _ in range(steps):
        d = d + RATE * (problem.B @ problem.theta + problem.c - problem.A @ d)
    (expected,) = torch.autograd.grad(outer(d, problem.theta), problem.theta)
    d = d.detach().requires_grad_()
    made = hypergradient(
        outer(d, problem.theta), problem.value(d, problem.theta), d, [problem.theta], steps, RATE
    )
    assert_close(made[0], expected)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_it_equals_explicit_matrices_for_a_network(steps: int) -> None:
    """The Jacobians of Phi are computed entry by entry. A parameter that H ignores gets zeros."""
    rng = stream(0, "network")
    x = torch.rand(6, 4, generator=rng, dtype=torch.float64)
    y, unused = torch.arange(6) % 3, torch.ones(2, dtype=torch.float64, requires_grad=True)
    w1, w2 = (torch.randn(5, n, generator=rng, dtype=torch.float64) for n in (4, 3))
    d = torch.randn(1, 4, generator=rng, dtype=torch.float64)

    def value(d: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        return cross_entropy((x + d) @ w1.T.tanh() @ w2, y)

    loss = value(d.requires_grad_(), w1.requires_grad_(), w2.requires_grad_())
    made = hypergradient(loss, loss, d, [w1, w2, unused], steps, RATE)
    blocks = torch.autograd.functional.hessian(value, (d, w1, w2))
    jacobian = torch.eye(4, dtype=torch.float64) + RATE * blocks[0][0].reshape(4, 4)
    g, *expected = torch.autograd.grad(value(d, w1, w2), (d, w1, w2))
    terms = [jacobian.matrix_power(k) @ g.flatten() for k in range(steps)]
    v = torch.stack([torch.zeros(4, dtype=torch.float64), *terms]).sum(0)
    for n, weights in enumerate((w1, w2)):
        mixed = blocks[0][n + 1].reshape(4, weights.numel())
        assert_close(made[n], expected[n] + RATE * (v @ mixed).view_as(weights))
        assert not made[n].requires_grad
    assert made[2].tolist() == [0, 0]


@pytest.fixture
def images() -> ImageSet:
    """60 small images of noise, six of each of ten classes."""
    return scenarios.random_images(60, 8, 10)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Of all batches, in order."""
    found: list[float] = []

    def watched(*arguments: Tensor) -> Tensor:
        loss = cross_entropy(*arguments)
        found.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(i_bau, "cross_entropy", watched)
    return found


def make_context(images: ImageSet, **fields: object) -> Context:
    """40 clean images to fit, 10 for validation and an untrained network, whose running statistics
    are not those of its batches; lengths as published."""
    context = scenarios.defense_context(images, 0.05)
    context = replace(
        context,
        recipe=replace(context.recipe, updates=1.0, **fields),
        build_network=partial(models.build("wrn16_1").build, 10, images.size[0]),
    )
    shared = context.build().eval()
    for norm in norms(shared):
        norm.get_buffer("running_var").fill_(0.5)
    clean = CleanBudget(images[torch.arange(40)], images[torch.arange(40, 50)])
    return replace(context, clean=clean, train_undefended=lambda n: shared)


def norms(network: Classifier) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def flat(network: Classifier) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def assert_same(one: Classifier, other: Classifier) -> None:
    assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("portion", "carriers"), [(1.0, 20), (0.3, 6), (0.001, 1)])
def test_two_rounds_equal_a_slow_implementation_of_the_paper(
    portion: float, carriers: int, images: ImageSet
) -> None:
    """Perturbed images are made one by one, the projection is in Python, each product with a second
    derivative is the gradient of a dot product, and Adam is written out. Radius 0.2 binds."""
    context = make_context(images, padding=2)
    settings = IBAU(
        rounds=2, updates=2, radius=0.8, batch_size=20, fixed_point_rate=2.0, portion=portion
    )
    ours = settings.fit(images, context)

    network = deepcopy(context.undefended())
    theta, rng = list(network.parameters()), context.rng("clean images")
    recipe = replace(context.recipe, epochs=1, batch_size=20, drops=())
    delta = torch.zeros(3, 8, 8)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in theta]
    count = 0
    bound: list[bool] = []

    def mean_loss(batch: Batch, count: int = 20) -> Tensor:
        perturbed = [image + delta if n < count else image for n, image in enumerate(batch.images)]
        perturbed = torch.stack(perturbed)
        return cross_entropy(network(perturbed), batch.labels)

    def ascend(batch: Batch) -> None:
        nonlocal delta
        delta = delta.detach().requires_grad_()
        mean_loss(batch).backward()
        delta = (delta + 10.0 * delta.grad).detach()
        norm = math.sqrt(float((delta**2).sum()))
        bound.append(norm > 0.2)
        if norm > 0.2:
            delta = delta * 0.2 / norm

    def unlearn(batch: Batch) -> None:
        nonlocal delta, count
        delta = delta.detach().requires_grad_()
        g = torch.autograd.grad(mean_loss(batch, carriers), delta)[0]
        v = torch.zeros_like(g)
        for _ in range(5):
            slope = torch.autograd.grad(mean_loss(batch), delta, create_graph=True)[0]
            v = v + 2.0 * torch.autograd.grad((slope * v).sum(), delta)[0] + g
        slope = torch.autograd.grad(mean_loss(batch), delta, create_graph=True)[0]
        gradients = torch.autograd.grad(mean_loss(batch, carriers) + 2.0 * (slope * v).sum(), theta)
        count += 1
        with torch.no_grad():
            for p, gradient, (first, second) in zip(theta, gradients, moments, strict=True):
                first += 0.1 * (gradient - first)
                second += 0.001 * (gradient**2 - second)
                step = first / (1 - 0.9**count)
                p -= 0.001 * step / ((second / (1 - 0.999**count)).sqrt() + 1e-8)

    for _ in range(2):
        delta = torch.zeros(3, 8, 8)
        for step in (ascend, unlearn):
            loop(step, context.trusted().fit, recipe=recipe, rng=rng, state={})
    assert bound == [True] * 4
    assert count == 4
    before, made, expected = (flat(each) for each in (context.undefended(), ours, network))
    # Rounding turns a few activations on or off. Without the implicit part it is far away.
    moved = float((expected - before).norm())
    assert float((made - expected).norm()) <= 0.05 * moved
    control = replace(settings, fixed_point_steps=0).fit(images, context)
    assert float((flat(control) - expected).norm()) > 0.2 * moved


def test_without_radius_and_implicit_part_it_is_plain_fine_tuning(images: ImageSet) -> None:
    """By Adam, with the running statistics. Byte for byte."""
    context = make_context(images)
    ours = replace(SHORT, radius=0.0, fixed_point_steps=0).fit(images, context)
    assert context.journal.scalars == {"norm of delta": 0.0}

    network, rng = deepcopy(context.undefended()), context.rng("clean images")
    optimizer = Adam(network.parameters(), lr=0.001)
    recipe, fit = SHORT.schedule(context.recipe), context.trusted().fit

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        cross_entropy(network(batch.images), batch.labels).backward()
        optimizer.step()

    for skipped in (True, False):
        run = (lambda batch: None) if skipped else step
        loop(run, fit, recipe=recipe, rng=rng, state={"optimizer": optimizer}, updates=3)
    assert_same(ours, network)


@pytest.mark.parametrize(("size", "radius"), [(16, 5.0), (32, 10.0), (8, 2.5)])
def test_the_radius_follows_the_number_of_pixels(size: int, radius: float) -> None:
    images = scenarios.random_images(60, size, 10)
    context = make_context(images)
    replace(SHORT, updates=1, ascent_rate=1e6).fit(images, context)
    assert context.journal.scalars["norm of delta"] == pytest.approx(radius)


def test_a_small_delta_is_not_stretched(images: ImageSet) -> None:
    context = make_context(images)
    replace(SHORT, updates=1, ascent_rate=1e-3).fit(images, context)
    assert 0 < context.journal.scalars["norm of delta"] < 0.1


def test_the_ascent_raises_the_loss_and_unlearning_lowers_it(
    images: ImageSet, losses: list[float]
) -> None:
    context = make_context(images, padding=0, cutout=0, flip=False)
    IBAU(rounds=1, updates=10, batch_size=40, portion=1.0).fit(images, context)
    up, down = losses[:10], losses[10:]
    assert up[-1] > up[0] + 0.1
    assert down[0] >= up[-1] - 0.1
    assert down[-1] < down[0] - 0.1


def test_every_round_starts_from_zero(images: ImageSet, losses: list[float]) -> None:
    """With weights that hardly move and no augmentation, rounds on one batch repeat the first."""
    context = make_context(images, padding=0, cutout=0, flip=False)
    IBAU(rounds=3, updates=2, learning_rate=1e-12, batch_size=40, portion=1.0).fit(images, context)
    assert losses[4:8] == pytest.approx(losses[:4], rel=1e-5)
    assert losses[8:] == pytest.approx(losses[:4], rel=1e-5)


def test_running_statistics_stay_as_they_are(images: ImageSet) -> None:
    context = make_context(images)
    made = SHORT.fit(images, context)
    assert not made.training
    assert_close(dict(made.named_buffers()), dict(context.undefended().named_buffers()))
    assert not torch.equal(flat(made), flat(context.undefended()))


def test_the_shared_network_is_unchanged(images: ImageSet) -> None:
    context = make_context(images)
    before = deepcopy(context.undefended())
    SHORT.fit(images, context)
    assert_same(context.undefended(), before)
    assert all(p.grad is None and p.requires_grad for p in context.undefended().parameters())


def test_only_the_fit_part_of_the_clean_images_is_used(images: ImageSet) -> None:
    context = make_context(images)
    one = SHORT.fit(images, context)
    other = replace(context, clean=CleanBudget(context.trusted().fit, images[torch.arange(5)]))
    assert_same(one, SHORT.fit(images[torch.arange(20)], other))


def test_it_runs_in_bf16(images: ImageSet) -> None:
    settings = replace(SHORT, batch_size=40, updates=1, fixed_point_steps=2)
    one, two = (
        settings.fit(images, make_context(images, precision=each)) for each in ("fp32", "bf16")
    )
    start = flat(make_context(images).undefended())
    a, b = flat(one) - start, flat(two) - start
    assert float(a @ b / (a.norm() * b.norm())) > 0.5


def test_a_compiled_network_is_not_compiled_here(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile has no second derivatives."""

    def fail(kind: type[Classifier]) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(classifier, "compiled", fail)
    plain = SHORT.fit(images, make_context(images))
    made = SHORT.fit(images, make_context(images, compiled=True))
    assert made.compiled
    assert not plain.compiled
    assert_same(made, plain)


@pytest.mark.parametrize(
    ("steps", "portion", "losses"), [(0, 0.01, 2), (1, 0.01, 3), (5, 0.01, 3), (5, 1.0, 2)]
)
def test_the_cost_equals_the_counted_passes(
    steps: int, portion: float, losses: int, work: Callable[[Callable[[], object]], int]
) -> None:
    """A forward and a backward pass for each loss, and one backward for each step, whatever the
    epochs. With an implicit part, a loss of few images needs that of all beside it."""
    images = scenarios.random_images(1000, 8, 10)
    context = scenarios.defense_context(images, 0.05)
    context = replace(context, recipe=replace(context.recipe, epochs=3, updates=1.0))
    defense = IBAU(rounds=2, updates=2, fixed_point_steps=steps, portion=portion)
    own = defense.cost(context.recipe, len(images)) - 9.0
    assert own == pytest.approx((3 * losses + 2 * steps) * 4 * 40 / 1000)
    assert work(lambda: defense.fit(images, context)) == pytest.approx(own * len(images))


def test_it_costs_a_fiftieth_of_training() -> None:
    own = 19 * 150 * 100 / 50_000
    assert own <= 300 / 50
    assert IBAU().cost(Recipe(), 50_000) == pytest.approx(300 + own)


def test_without_clean_images_the_error_says_so(images: ImageSet) -> None:
    with pytest.raises(InvalidInput, match="needs clean images, but none are lent"):
        SHORT.fit(images, replace(make_context(images), clean=None))


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("i_bau(rounds=0)", "rounds must be at least 1, got 0"),
        ("i_bau(updates=0)", "updates must be at least 1, got 0"),
        ("i_bau(learning_rate=0.0)", "learning_rate must be above 0, got 0.0"),
        ("i_bau(radius=-1.0)", "radius must be at least 0, got -1.0"),
        ("i_bau(ascent_rate=0.0)", "ascent_rate must be above 0, got 0.0"),
        ("i_bau(fixed_point_steps=-1)", "fixed_point_steps must be at least 0, got -1"),
        ("i_bau(fixed_point_rate=0.0)", "fixed_point_rate must be above 0, got 0.0"),
        ("i_bau(portion=0.0)", "portion must be above 0 and at most 1, got 0.0"),
        ("i_bau(portion=1.5)", "portion must be above 0 and at most 1, got 1.5"),
        ("i_bau(batch_size=1)", "batch_size must be at least 2, got 1"),
    ],
)
def test_a_bad_setting_is_refused(spec: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        defenses.build(spec)

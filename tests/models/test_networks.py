"""Networks of other projects, split into stages, and what a defense needs of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import refused
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention

import bdbench as bd
from bdbench.cells.cell import cell, check_network
from bdbench.cells.suites import Suite
from bdbench.cli import main
from bdbench.contract.promises import check_plugin, promises, resolve
from bdbench.contract.scenarios import SIDE, defense_context, random_images
from bdbench.defenses.registry import defenses
from bdbench.models.networks.classifier import Classifier, draws, stage_shapes
from bdbench.models.networks.traced import Traced
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.rng import GENERATORS, global_seed, seeded, stream
from bdbench.models.training.loop import logits
from bdbench.models.training.recipe import Recipe
from bdbench.running import run
from bdbench.running.engines.options import ExecutionOptions
from bdbench.running.plan import RunOptions, plan
from bdbench.running.states import CellState


def images(size: int, count: int = 3) -> Tensor:
    return torch.rand(count, 3, size, size, generator=stream(0, "picture"))


def built(text: str, size: int = 32) -> Classifier:
    with global_seed(0, "test"):
        return models.build(text).build(10, size)


@pytest.mark.parametrize(
    ("name", "size", "sides", "embedding"),
    [
        ("resnet18", 64, [32, 16, 8, 4, 2], 512),
        ("resnext50_32x4d", 32, [16, 8, 4, 2, 1], 2048),
        ("mobilenet_v3_small", 32, [16, 8, 4, 2, 1], 1024),
        ("convnext_tiny", 64, [16, 8, 4, 2], 768),
        # Its average pooling to 7 x 7 is not a stage.
        ("vgg11_bn", 32, [32, 16, 8, 4, 2], 4096),
    ],
)
def test_a_network_of_torchvision_keeps_its_logits_and_has_stages(
    name: str, size: int, sides: list[int], embedding: int
) -> None:
    import torchvision.models as theirs

    model = built(f"torchvision(name={name!r})", size).eval()
    with global_seed(0, "test"):
        original = theirs.get_model(name, weights=None, num_classes=10).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images(size)), original(images(size)))
    assert [shape[2] for shape in stage_shapes(model, size)] == sides
    assert model.head.in_features == embedding
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in original.parameters()
    )


def test_a_scale_enlarges_images_first() -> None:
    model = built("torchvision(name='shufflenet_v2_x0_5', scale=2)", 32).eval()
    large = built("torchvision(name='shufflenet_v2_x0_5')", 64).eval()
    large.load_state_dict(model.state_dict())
    wide = nn.functional.interpolate(images(32), scale_factor=2, mode="bilinear")
    with torch.no_grad():
        torch.testing.assert_close(model(images(32)), large(wide))


class Home(nn.Module):
    """A network with dropout, a branch, and a parameter that both pieces read."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.branch, self.drop = nn.Conv2d(8, 8, 1), nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.head = head or nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = (self.first(images) * self.scale).relu()
        maps = self.second(maps)
        maps = (maps + self.branch(maps)).relu_()
        return self.head(self.drop(maps.mean((2, 3)) * self.scale))


def traced(network: nn.Module) -> Traced:
    return Traced(network, 16, 1, 0.0, 1.0, "mine")


def test_a_piece_keeps_its_parameters_and_dropout() -> None:
    model = traced(Home())
    assert [tuple(shape) for shape in stage_shapes(model, 16)] == [(1, 8, 8, 8), (1, 8, 4, 4)]
    assert draws(model)
    assert model.train().training
    assert not torch.equal(model(images(16)), model(images(16))), "dropout, in training"
    copy = deepcopy(model).eval()
    torch.testing.assert_close(copy(images(16)), model.eval()(images(16)))
    assert sum(values.numel() for values in model.parameters()) == sum(
        values.numel() for values in Home().parameters()
    )
    model(images(16)).sum().backward()
    assert all(values.grad is not None for values in model.parameters())


class Branching(Home):
    """Its control flow depends on an image, so that it cannot be traced."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.sum() > 0 else -images)


class Skipping(Home):
    """The images are added after all feature maps."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.second(self.first(images))
        return self.head(maps.mean((2, 3)) + images.mean((1, 2, 3))[:, None])


class Rowing(Home):
    """Its last layer reads a row for each pixel."""

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(images)).flatten(2).mT)


class Dropping(Home):
    """Its dropout is a function, not a layer."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, images: Tensor) -> Tensor:
        maps = self.second(self.first(images)).mean((2, 3))
        return self.head(dropout(maps, self.share, self.training))


class Attending(Dropping):
    """Its attention drops a share in training; its function has no argument for the mode."""

    def forward(self, images: Tensor) -> Tensor:
        rows = self.second(self.first(images)).flatten(2).mT
        share = self.share if self.training else 0.0
        return self.head(scaled_dot_product_attention(rows, rows, rows, dropout_p=share).mean(1))


class Noisy(Dropping):
    """It adds noise in training."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.second(self.first(images))
        if self.training:
            maps = maps + self.share * torch.rand_like(maps)
        return self.head(maps.mean((2, 3)))


class Helped(Home):
    """In training, it gives logits of an earlier layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.aid = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Any:
        first = self.first(images)
        logits = self.head(self.second(first).mean((2, 3)))
        return (logits, self.aid(first.mean((2, 3)))) if self.training else logits


TRAINING = "mine computes something else in training, which is lost once it is traced"


@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        (Attending(0.5), TRAINING),
        (Attending(0.0), None),
        (Noisy(0.5), TRAINING),
        (Helped(), None),
        (Dropping(0.5), "mine calls dropout with its own mode, which is fixed once it is traced"),
        (Dropping(0.0), None),
        (Branching(), "mine cannot be traced: symbolically traced variables cannot be used"),
        (Skipping(), "mine has no feature map that every path to the logits passes"),
        (Rowing(), "the last layer of mine does not read one vector for each image"),
        (Home(nn.LazyLinear(10)), None),
        (Home(nn.Linear(9, 10)), "mine cannot take images of 16 pixels: mat1 and mat2 shapes"),
        (
            Home(nn.Sequential(nn.Linear(8, 10), nn.ReLU())),
            "mine does not end in a linear layer from an embedding to the classes",
        ),
    ],
    ids=[
        "attention with dropout",
        "attention",
        "noise",
        "auxiliary logits",
        "functional dropout",
        "no dropout",
        "control flow",
        "skip",
        "rows",
        "lazy",
        "width",
        "no head",
    ],
)
def test_a_network_that_cannot_be_split_is_refused(
    network: nn.Module, complaint: str | None
) -> None:
    if complaint is None:
        traced(network)
        return
    with pytest.raises(InvalidInput, match=complaint):
        traced(network)


class Norms(Classifier):
    """Two stages without any normalisation, and no head."""

    def __init__(self, classes: int) -> None:
        super().__init__(0.0, 1.0)
        self.one, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, classes, 3, 2, 1)

    def body(self, images: Tensor) -> list[Tensor]:
        maps = self.one(images)
        return [maps, self.two(maps)]

    def embed(self, last: Tensor) -> Tensor:
        return last

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)


def bare(num_classes: int, image_size: int) -> Norms:
    """A network without normalisation and head.

    num_classes, image_size: as for all models
    """
    return Norms(num_classes)


TINY = "toy(train_images=40, test_images=20, image_size=16)"
NEEDS = {
    "anp": "a BatchNorm2d that has weights",
    "clp": "a BatchNorm2d that reads the output of a convolution",
    "nad": r"3 stages \(it has 2\)",
    "fp": "a linear layer `head` that reads its features",
    "cbd": "a linear layer `head`",
    "dbd": "a linear layer `head`",
    "spectral": "a linear layer `head`",
    "activation_clustering": "a linear layer `head`",
}


@pytest.mark.parametrize("defense", NEEDS)
def test_the_error_says_what_a_network_lacks(defense: str) -> None:
    made = cell(TINY, bd.Model(bare, {}), "badnets", defense, Recipe(epochs=1), 0)
    said = rf"^defense {defense} needs {NEEDS[defense]}.*, which model bare lacks at 16 pixels: "
    with pytest.raises(InvalidInput, match=said):
        check_network(made)


INVERTED = [
    "trojan(mode='inverted')",
    "adaptive(attack='trojan(mode=\"inverted\")')",
    "mixed(attacks=['badnets', 'trojan(mode=\"inverted\", target=1)'])",
]


@pytest.mark.parametrize("attack", INVERTED)
def test_the_error_says_what_an_attack_lacks(attack: str) -> None:
    made = cell(TINY, bd.Model(bare, {}), attack, "none", Recipe(epochs=1), 0)
    said = r"^attack .*inverted.* needs a linear layer `head` .*, which model bare lacks at 16 pi"
    with pytest.raises(InvalidInput, match=said):
        check_network(made)
    check_network(replace(made, model=models.built("wrn16_1")))


@pytest.mark.parametrize("attack", ["badnets", "trojan", "lc", "lf", "ssba", "dynamic", "adaptive"])
def test_attacks_without_needs_accept_any_network(attack: str) -> None:
    check_network(cell(TINY, bd.Model(bare, {}), attack, "none", Recipe(epochs=1), 0))


@pytest.mark.usefixtures("nothing_trains")
@pytest.mark.parametrize("attack", INVERTED)
def test_an_attack_is_refused_a_network_before_anything_trains(attack: str, tmp_path: Path) -> None:
    suite = Suite("", (TINY,), (bd.Model(bare, {}),), ("badnets", attack), ("none", "ft"))
    said, local = (
        r"lacks at 16 pixels: choose another model or leave out the attack$",
        ExecutionOptions(in_process=True),
    )
    with pytest.raises(InvalidInput, match=said):
        plan("mine", suite, local, RunOptions(device="cpu", results=tmp_path))
    with pytest.raises(InvalidInput, match=said):
        bd.run_cell(dataset=TINY, model=bd.Model(bare, {}), attack=attack, epochs=1)
    with pytest.raises(InvalidInput, match=said):
        bd.poison(attack, dataset=TINY, model=bd.Model(bare, {}), epochs=1)


@pytest.mark.parametrize("defense", ["none", "ft", "ft_sam", "mcr", "abl", "asd"])
def test_defenses_without_needs_accept_any_network(defense: str) -> None:
    check_network(cell(TINY, bd.Model(bare, {}), "badnets", defense, Recipe(epochs=1), 0))


class Own(Classifier):
    """A network with its own forward, which gives `of(logits)` and keeps what it was given."""

    of: Callable[[Tensor], object] = staticmethod(lambda logits: logits)

    def __init__(self, classes: int) -> None:
        super().__init__(0.0, 1.0)
        self.layers = nn.Sequential(nn.Conv2d(3, classes, 3), nn.BatchNorm2d(classes), nn.Dropout())
        self.layers[1].eval()
        self.seen: Tensor | None = None

    def body(self, images: Tensor) -> list[Tensor]:
        return [self.layers(images)]

    def embed(self, last: Tensor) -> Tensor:
        return last

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        torch.rand(1)
        return self.of(self.features(images))  # type: ignore[return-value]


def own(classes: int, size: int) -> Own:
    return Own(classes)


def test_to_check_a_network_changes_nothing(work: Callable[[Callable[[], object]], int]) -> None:
    model, before = bd.Model(own, {}), GENERATORS.fingerprint()
    with seeded(0, "test"):
        plain, after = own(10, 16), torch.get_rng_state()
    with seeded(0, "test"):
        made: list[Classifier] = []
        assert work(lambda: made.append(model.build(10, 16))) == 0
        assert torch.equal(torch.get_rng_state(), after)
    (found,) = made
    assert GENERATORS.fingerprint() == before
    assert found.seen is None
    for one, other in zip(plain.modules(), found.modules(), strict=True):
        assert one.training is other.training
    weights = found.state_dict()
    assert all(torch.equal(values, weights[name]) for name, values in plain.state_dict().items())


@pytest.mark.parametrize(
    ("of", "got"),
    [
        (lambda logits: logits[:, :5], "float32 (2, 5)"),
        (lambda logits: logits.long(), "int64 (2, 10)"),
        (lambda logits: [logits], "a list"),
        (lambda logits: None, "a NoneType"),
    ],
)
def test_a_model_whose_forward_gives_no_logits_is_refused_before_anything_trains(
    of: Callable[[Tensor], object], got: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Own, "of", staticmethod(of))
    with pytest.raises(InvalidInput) as refusal:
        check_network(cell(TINY, bd.Model(own, {}), "none", "none", Recipe(epochs=1), 0))
    assert str(refusal.value) == (
        f"model 'own' returned a Own whose forward gives {got} for two images: it must give "
        "logits, float (2, 10)"
    )


def test_a_model_makes_a_new_network_in_each_call() -> None:
    """Or else two networks of a defense are one, and so are those of two cells."""
    only = own(10, 16)

    def single(classes: int, size: int) -> Classifier:
        return only

    def outer(classes: int, size: int) -> Classifier:
        return bd.Model(own, {}).build(classes, size)

    model = bd.Model(single, {})
    assert model.build(10, 16) is only
    with pytest.raises(InvalidInput, match=r"^model 'single' returned a network that it had retur"):
        model.build(10, 16)
    assert bd.Model(outer, {}).build(10, 16) is not bd.Model(outer, {}).build(10, 16)


def frozen_stem(classes: int, size: int) -> Classifier:
    network = models.build("wrn16_1").build(classes, size)
    network.stem.requires_grad_(False)
    network.unused = nn.Parameter(torch.ones(1))
    return network


def frozen_head(classes: int, size: int) -> Classifier:
    network = models.build("wrn16_1").build(classes, size)
    network.head.requires_grad_(False)
    return network


@pytest.mark.parametrize("model", [frozen_stem, frozen_head])
@pytest.mark.parametrize("name", defenses.names())
def test_a_defense_accepts_parameters_that_are_frozen_or_unused(
    name: str, model: Callable[[int, int], Classifier]
) -> None:
    data, defense = random_images(60, SIDE, 10), defenses.build(name)
    build = partial(bd.Model(model, {}).build, 10, SIDE)
    lacking = defense.lacks(build(), SIDE)
    assert bool(lacking) == (name == "dbd" and model is frozen_head)
    if lacking:
        assert lacking == "a head that is not frozen"
        return
    lent = replace(defense_context(data, defense.clean_fraction), build_network=build)
    context = replace(lent, train_undefended=lambda n: lent.build(f"undefended {n}").eval())
    assert logits(defense.fit(data, context), data.images).isfinite().all()


@pytest.fixture
def nothing_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("something was begun")

    monkeypatch.setattr(run, "Schedule", fail)
    monkeypatch.setattr("bdbench.api.Harness.finish", fail)


RUN = [f"--dataset={TINY}", "--attack=badnets", "--epochs=1", "--device=cpu", "--precision=fp32"]


@pytest.mark.usefixtures("nothing_trains")
@pytest.mark.parametrize(
    ("model", "defense", "complaint"),
    [
        ("torchvision(name='resnet81')", "none", "no classifier 'resnet81'; did you mean 'resnet"),
        (
            "torchvision(name='')",
            "none",
            "torchvision has no classifier ''; choose one of: alex",
        ),
        ("torchvision(nam='resnet18')", "none", "has no field 'nam'; did you mean 'name'?"),
        ("torchvision(name=18)", "none", "name of model 'torchvision' must be str, got 18"),
        ("torchvision(scale=0)", "none", "scale must be at least 1, got 0"),
        ("torchvision(scale=1.5)", "none", "scale of model 'torchvision' must be int, got 1.5"),
        ("torchvision(deviation=0.0)", "none", "deviation of a model must be finite"),
        ("torchvision(name='alexnet')", "none", "'alexnet' cannot take images of 16 pixels: "),
        ("torchvision(name='squeezenet1_1', scale=4)", "none", "does not end in a linear layer"),
        ("torchvision", "nad", "defense nad needs feature maps of more than one pixel"),
        ("torchvision(name='mobilenet_v2')", "nad(p=1.0)", "defense nad(p=1.0) needs feature maps"),
        ("torchvison", "none", "unknown model 'torchvison'; did you mean 'torchvision'?"),
    ],
)
def test_an_unsuitable_network_is_refused_before_anything_trains(
    model: str, defense: str, complaint: str, capsys: pytest.CaptureFixture[str], own_folder: Path
) -> None:
    line = refused(
        capsys, "run", *RUN, f"--model={model}", f"--defense={defense}", "--defense=none"
    )
    assert complaint in line
    assert not list(own_folder.iterdir())


@pytest.mark.usefixtures("nothing_trains")
def test_one_cell_from_python_is_refused_as_well() -> None:
    model = bd.model("torchvision", name="resnet18")
    with pytest.raises(InvalidInput, match="nad needs feature maps of more than one pixel at the"):
        bd.run_cell(dataset=TINY, model=model, defense="nad", epochs=1)


@pytest.mark.parametrize("error", [RuntimeError("no"), RecursionError("deep"), OSError("gone")])
def test_a_model_whose_code_fails_affects_only_its_cells(error: Exception, tmp_path: Path) -> None:
    """Other cells of the run continue, as with an attack or a defense."""

    def failing(num_classes: int, image_size: int) -> Classifier:
        raise error

    suite = Suite("", (TINY,), (bd.Model(failing, {}),), ("badnets",), ("none", "nad"))
    options = RunOptions(device="cpu", results=tmp_path)
    assert len(plan("mine", suite, ExecutionOptions(in_process=True), options).missing) == 2


def test_only_missing_cells_are_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str]] = []
    monkeypatch.setattr(
        "bdbench.running.probing.check_network",
        lambda each, axes: asked.append((each.labels["model"], *(each.labels[a] for a in axes))),
    )
    suite = Suite("", (TINY,), attacks=("badnets", "blend"), defenses=("none", "fp"), seeds=2)
    execution, options = ExecutionOptions(), RunOptions(device="cpu", results=tmp_path)
    cells = plan("mine", suite, execution, options).cells
    assert asked == [("wrn16_1", "none"), ("wrn16_1", "fp")]
    asked.clear()
    missing, finished = CellState("missing"), CellState("finished", tmp_path)
    monkeypatch.setattr(
        "bdbench.running.plan.state_of",
        lambda each, *_, **__: missing if each == cells[1] else finished,
    )
    plan("mine", suite, execution, options)
    assert asked == [("wrn16_1", "fp")]


OWN = '''"""A defense that needs four stages, nobody, 2026."""

import os
from dataclasses import dataclass

from bdbench.defenses import Context, Defense, register
from bdbench.models import Classifier, ImageSet, stage_shapes


@register("deep")
@dataclass(frozen=True)
class Deep(Defense):
    """It has no settings."""

    def lacks(self, network: Classifier, image_size: int) -> str:
        open("asked", "a").write(f"{os.getpid()} ")
        return "" if len(stage_shapes(network, image_size)) > 3 else "four stages"

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        return context.undefended()
'''


@pytest.mark.usefixtures("nothing_trains", "unregistered")
def test_a_plugin_defense_is_probed_in_another_process(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    (own_folder / "deep.py").write_text(OWN)
    line = refused(capsys, "run", *RUN, "--plugin=deep.py", "--defense=deep")
    assert "defense deep needs four stages, which model wrn16_1 lacks at 16 pixels" in line
    (asked,) = (own_folder / "asked").read_text().split()
    assert int(asked) != os.getpid()


def test_a_spec_can_be_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert resolve("torchvision( name='vgg11')") == [("model", "torchvision(name='vgg11')")]
    text = "torchvision(name='shufflenet_v2_x0_5')"
    assert main(["check", text]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"model {text}\n")
    assert shown.count("  ok ") == len(promises("model"))
    broken = [
        each for each in check_plugin("model", "torchvision(name='alexnet')") if not each.kept
    ]
    assert str(broken[0].why).startswith("torchvision's 'alexnet' cannot take images of 48 pixels")
    assert {each.kept for each in broken[1:]} == {None}
    for what, complaint in (
        ("torchvision(nam='x')", "has no field 'nam'"),
        ("torchvison(name='x')", "unknown plugin 'torchvison'"),
        ("torchvision(", "expected name or name(field=value, ...)"),
    ):
        assert complaint in refused(capsys, "check", what)

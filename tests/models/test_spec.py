"""Spec strings and the registry: accepted and refused texts, and the messages."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bdbench.attacks.registry import attacks
from bdbench.cells.cell import REGISTRIES, cell
from bdbench.datasets.registry import datasets
from bdbench.defenses.registry import defenses
from bdbench.models.plugins.documentation import about_fields, about_module
from bdbench.models.plugins.errors import InvalidInput, above, at_least, one_of
from bdbench.models.plugins.files import RegistersNothing, load_file
from bdbench.models.plugins.registry import Registry
from bdbench.models.plugins.spec import Spec, added, path_field
from bdbench.models.registry import Model, models
from bdbench.models.training.recipe import Recipe


def test_a_spec_is_a_name_with_literal_fields() -> None:
    assert Spec.of("badnets") == Spec("badnets")
    assert Spec.of(" blend(alpha=0.1, target=3) ") == Spec("blend", {"alpha": 0.1, "target": 3})
    assert Spec.of("x(a='b', c=(1, 2), d=None, e=-1)").fields == {
        "a": "b",
        "c": (1, 2),
        "d": None,
        "e": -1,
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "blend(0.1)",
        "blend(alpha=0.1",
        "blend(alpha=0.1, alpha=0.2)",
        "blend(**{'alpha': 1})",
        "blend(alpha=__import__('os').getcwd())",
        "__import__('os').system('true')",
        "blend.x",
        "../../blend",
        "blend;badnets",
        "blend(alpha=" + "(" * 300 + "1" + ")" * 300 + ")",
        "blend(alpha=1" + "0" * 10_000_000 + ")",
    ],
)
def test_anything_else_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        Spec.of(text)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 1_500


def test_the_canonical_spec_writes_every_field_and_is_its_own_canonical_form() -> None:
    text = attacks.canonical("blend(target=2)")
    assert text == "blend(poisoning_rate=0.1, target=2, alpha=0.2, pattern_seed=0)"
    assert attacks.canonical(text) == text
    assert attacks.label(text) == "blend(target=2)"
    assert attacks.label("blend(alpha=0.2)") == "blend"


def test_numbers_are_converted_to_the_type_of_the_field() -> None:
    assert attacks.canonical("blend(alpha=1)") == attacks.canonical("blend(alpha=1.0)")
    assert datasets.canonical("toy(train_images=100)").startswith("toy(train_images=100")


@pytest.mark.parametrize(
    ("registry", "text", "complaint"),
    [
        (attacks, "badnet", "unknown attack 'badnet'; did you mean 'badnets'?"),
        (defenses, "cdb", "unknown defense 'cdb'; did you mean 'cbd'?"),
        (models, "wrn16", "unknown model 'wrn16'; did you mean 'wrn16_1'?"),
        (models, "ResNet-18", "unknown model 'ResNet-18'; did you mean 'resnet18'?"),
        (attacks, "WaNet", "unknown attack 'WaNet'; did you mean 'wanet'?"),
        (defenses, "None", "unknown defense 'None'; did you mean 'none'?"),
        (defenses, "FT", "unknown defense 'FT'; did you mean 'ft'?"),
        (defenses, "sam", "unknown defense 'sam'; did you mean 'ft_sam'?"),
        (defenses, "nad+ft", "unknown defense 'nad+ft'; did you mean"),
        (defenses, "ac", "unknown defense 'ac'; did you mean 'activation_clustering'?"),
        (defenses, "badnets", "unknown defense 'badnets', which is an attack; choose one of"),
        (attacks, "cbd", "unknown attack 'cbd', which is a defense; "),
        (models, "fp(prune=0.1)", "unknown model 'fp', which is a defense; "),
        (attacks, "badnets(rate=0.1)", "no field 'rate'; did you mean 'poisoning_rate'?"),
        (attacks, "blend(Alpha=0.1)", "no field 'Alpha'; did you mean 'alpha'?"),
        (datasets, "cifar", "unknown data set 'cifar'; did you mean 'cifar10'?"),
        (attacks, "blend(alfa=0.1)", "attack 'blend' has no field 'alfa'; did you mean 'alpha'?"),
        (
            attacks,
            "blend(pr=0.1)",
            "attack 'blend' has no field 'pr'; did you mean 'poisoning_rate'?",
        ),
        (attacks, "blend(alpha='a')", "alpha of attack 'blend' must be float, got 'a'"),
        (attacks, "blend(target=True)", "target of attack 'blend' must be int, got True"),
        (attacks, "blend(target=1.5)", "target of attack 'blend' must be int, got 1.5"),
        (defenses, "cbd(rescale=1)", "rescale of defense 'cbd' must be bool, got 1"),
        (datasets, "toy(train_images=3)", "train_images of toy must be at least 10"),
    ],
)
def test_a_wrong_name_or_field_is_answered_with_the_nearest(
    registry: Registry[object], text: str, complaint: str
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        registry.build(text)
    assert complaint in str(refusal.value)


def test_a_plugin_file_registers_and_a_broken_one_says_where(tmp_path: Path) -> None:
    good = tmp_path / "mine.py"
    good.write_text(
        "from dataclasses import dataclass\n"
        "from bdbench.attacks import register\n"
        "from bdbench.attacks.blend import Blend\n"
        "@register('mine')\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Blend):\n"
        "    alpha: float = 0.5\n"
    )
    load_file(good)
    load_file(good)
    try:
        assert "mine" in attacks.names()
        assert attacks.origin("mine") == str(good)
        assert attacks.canonical("mine").startswith("mine(poisoning_rate=0.1, target=0, alpha=0.5")
    finally:
        del attacks._factories["mine"]
    bad = tmp_path / "broken.py"
    bad.write_text("x = 1\ny = x / 0\n")
    with pytest.raises(InvalidInput, match=r"broken\.py' failed at line 2: ZeroDivisionError"):
        load_file(bad)
    with pytest.raises(InvalidInput, match=r"there is no plugin file '.*absent\.py'"):
        load_file(tmp_path / "absent.py")


def test_an_added_field_is_written_only_if_it_differs_from_its_default() -> None:
    @dataclass(frozen=True)
    class Thing:
        first: int = 1
        later: str = added("as ever")

    registry: Registry[object] = Registry("thing", "bdbench.models")
    registry._discovered = True
    registry.register("thing")(Thing)
    assert registry.canonical("thing") == "thing(first=1)"
    assert registry.canonical("thing(later='as ever')") == "thing(first=1)"
    assert registry.canonical("thing(later='x')") == "thing(first=1, later='x')"
    assert registry.label("thing(later='x')") == "thing(later='x')"
    assert registry.build("thing(later='x')") == Thing(later="x")
    assert registry.build("thing") == Thing()


def test_a_label_tells_true_from_1(mine: Callable[..., Any]) -> None:
    for kind in ("int | bool", "Literal[1, True]"):
        mine(kind, "added(1)")
        assert defenses.label("mine") == defenses.canonical("mine") == "mine"
        assert defenses.label("mine(size=True)") == "mine(size=True)"
        assert defenses.canonical("mine(size=True)") == "mine(size=True)"


def test_a_parameter_of_a_model_may_name_a_file(tmp_path: Path, unregistered: None) -> None:
    """As `field()` of a dataclass may be the default of a field."""
    given = []

    @models.register("net")
    def net(classes: int, size: int, weights: str = path_field("a.pt"), n: int = added(2)) -> Any:
        given.append((weights, n))
        return models.build("wrn16_1").build(classes, size)

    (tmp_path / "a.pt").write_bytes(b"1")
    text = f"net(weights={str(tmp_path / 'a.pt')!r})"
    assert models.canonical(text) == "net(weights='a.pt')"
    assert models.files(text) == [tmp_path / "a.pt"]
    for model in (models.build("net"), Model(net, {}), models.build(text)):
        model.build(10, 16)
    assert given == [("a.pt", 2), ("a.pt", 2), (str(tmp_path / "a.pt"), 2)]


def test_two_plugins_of_one_name_are_refused() -> None:
    registry: Registry[object] = Registry("thing", "bdbench.models")
    registry.register("x")(lambda: 1)
    with pytest.raises(InvalidInput, match="two things are called 'x'"):
        registry.register("x")(dict)


@pytest.mark.parametrize(
    ("test", "good", "bad", "complaint"),
    [
        (partial(at_least, 2), [2, 2.5, inf], [1.9, nan, -inf], "size must be at least 2, got "),
        (partial(above, 0), [1e-9, inf], [0, nan, -1], "size must be above 0, got "),
        (partial(one_of, ("a", "b")), ["a", "b"], ["c", ""], "size must be one of a, b, got "),
    ],
    ids=["at_least", "above", "one_of"],
)
def test_ranges_of_settings(
    test: Callable[..., None], good: list[Any], bad: list[Any], complaint: str
) -> None:
    for value in good:
        test(size=value, other=good[0])
    for value in bad:
        with pytest.raises(InvalidInput) as error:
            test(other=good[0], size=value)
        shown = repr(value) if isinstance(value, str) else str(value)
        assert str(error.value) == complaint + shown


KINDS = [
    ("list[int]", "field(default_factory=lambda: [1, 2])", "[3]", [3]),
    ("list[int]", "field(default_factory=list)", "(3, 4)", [3, 4]),
    ("list", "field(default_factory=list)", "[1, 'a']", [1, "a"]),
    ("Sequence[int]", "(1, 2)", "[3]", (3,)),
    ("tuple[int, float]", "(1, 2)", "[3, 4]", (3, 4.0)),
    ("tuple[Mode, ...]", "(Mode.FAST,)", "('SLOW', 'fast')", "(Mode.SLOW, Mode.FAST)"),
    ("dict[str, float]", "field(default_factory=dict)", "{'a': 1}", {"a": 1.0}),
    ("Literal['one', 'two']", "'one'", "'two'", "two"),
    ("Literal[1, True]", "1", "True", True),
    ("Mode", "Mode.FAST", "'SLOW'", "Mode.SLOW"),
    ("Mode", "Mode.FAST", "2", "Mode.SLOW"),
    ("Mode | None", "None", "'fast'", "Mode.FAST"),
    ("int | None", "3", "None", None),
    ("Optional[int]", "None", "3", 3),
    ("Union[Literal['all'], int]", "'all'", "3", 3),
    ("list[list[int]] | str", "'all'", "[[1]]", [[1]]),
    ("Annotated[float, 'a rate']", "1", "2", 2.0),
    ("Any", "None", "[1, ('a',)]", [1, ("a",)]),
    ("Mode | str", "Mode.FAST", "'SLOW'", "Mode.SLOW"),
]
FILE = '''"""A defense with one field."""
{future}
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import {typed}
if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction
from torch import Tensor
from bdbench.defenses import Defense, register
from bdbench.models import added

class Mode(Enum):
    FAST = "fast"
    SLOW = 2

@register("mine")
@dataclass(frozen=True)
class Mine(Defense):
    size: {kind}{default}

    def fit(self, data, context):
        return context.build()
'''


@pytest.fixture
def mine(tmp_path: Path, unregistered: None) -> Callable[..., Any]:
    """Loads a defense `mine` whose field `size` has this type and default."""

    def load(kind: str, default: str, future: bool = True) -> Any:
        typed = "TYPE_CHECKING, Annotated, Any, Literal, Optional, Union"
        text = FILE.format(
            future="from __future__ import annotations" if future else "",
            typed=typed if future else typed.replace("TYPE_CHECKING", "TYPE_CHECKING, Sequence"),
            kind=kind,
            default=default and f" = {default}",
        )
        path = tmp_path / "mine.py"
        path.write_text(text)
        load_file(path)
        return sys.modules[defenses.factory("mine").__module__]

    return load


@pytest.mark.parametrize("future", [True, False], ids=["text", "type"])
@pytest.mark.parametrize(("kind", "default", "given", "value"), KINDS)
def test_a_field_of_any_such_type_is_written_and_read_back(
    kind: str, default: str, given: str, value: Any, future: bool, mine: Callable[..., Any]
) -> None:
    module = mine(kind, default, future)
    expected = eval(value, vars(module)) if "Mode." in str(value) else value
    for text in ("mine", f"mine(size={given})"):
        made, canonical = defenses.build(text), defenses.canonical(text)
        assert defenses.canonical(canonical) == canonical
        assert defenses.canonical(made) == canonical
        assert defenses.build(canonical) == made
    assert (made.size, type(made.size)) == (expected, type(expected))
    assert defenses.label("mine") == "mine"
    # Two plugins do not share a list.
    if isinstance(defenses.build("mine").size, list):
        assert defenses.build("mine").size is not defenses.build("mine").size


@pytest.mark.parametrize(
    ("kind", "default", "text", "complaint"),
    [
        (
            "Literal['one', 'two']",
            "'one'",
            "mine(size='tow')",
            "size of defense 'mine' must be one of 'one', 'two', got 'tow'; did you mean 'two'?",
        ),
        (
            "Mode | None",
            "None",
            "mine(size='SLO')",
            "size of defense 'mine' must be one of 'FAST', 'SLOW', None, got 'SLO'; "
            "did you mean 'SLOW'?",
        ),
        ("Literal[1]", "1", "mine(size=True)", "must be one of 1, got True"),
        *(
            (kind, default, "mine", "in which 'FAST' does not stand for Mode")
            for kind, default in [
                ("str | Mode", "Mode.FAST"),
                ("list[str | Mode]", "field(default_factory=list)"),
                ("str | Literal[Mode.FAST]", "'x'"),
            ]
        ),
        ("list[int]", "field(default_factory=list)", "mine(size=['a'])", "list[int], got ['a']"),
        ("tuple[Mode, int]", "(Mode.FAST, 1)", "mine(size=(1,))", "tuple[Mode, int], got (1,)"),
        ("int | None", "None", "mine(size=1.5)", "must be int | None, got 1.5"),
        (
            "int",
            "None",
            "mine",
            "the default of size of defense 'mine' must be int, got None; write int | None",
        ),
        ("int", "", "mine(size=3)", "size of defense 'mine' has no default: give it one"),
        ("Path", "Path('a')", "mine", "has the type Path, which no spec can write; use int, float"),
        ("Tensor | None", "None", "mine", "has the type Tensor | None; Tensor, which no spec can"),
        ("set[int]", "frozenset()", "mine", "has the type set[int], which no spec can write"),
        (
            "Fraction",
            "3",
            "mine",
            "size of defense 'mine' has the type Fraction, which cannot be resolved: name "
            "'Fraction' is not defined; import it at the top of the file",
        ),
    ],
)
def test_a_field_that_cannot_be_written_or_read_is_named_with_its_type(
    kind: str, default: str, text: str, complaint: str, mine: Callable[..., Any]
) -> None:
    mine(kind, default)
    with pytest.raises(InvalidInput) as refusal:
        defenses.build(text)
    assert complaint in str(refusal.value)


HEAD = "from dataclasses import dataclass\nfrom bdbench.defenses import Defense, register\n"
CLASS = "@dataclass(frozen=True)\nclass Mine(Defense):\n    size: int = 1\n"
FIT = "    def fit(self, data, context):\n        return context.build()\n"
NAMED = f"{HEAD}@register('mine')\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("import torch\n\ndef f(:\n", "failed at line 3: SyntaxError: invalid syntax"),
        ("import nothing_there\n", "failed at line 1: ModuleNotFoundError"),
        ("import numpy\nnumpy.zeros(-1)\n", "failed at line 2: ValueError"),
        (NAMED + CLASS + "    of: int = unknown\n", "failed at line 7: NameError"),
        ("import bad_helper\n", "failed at line 2 of {folder}/bad_helper.py: ZeroDivisionError"),
        ("import no_helper\n", "failed at line 2 of {folder}/no_helper.py: SyntaxError"),
        ("raise SystemExit(3)\n", "failed at line 1: SystemExit: 3"),
        (HEAD + CLASS + FIT, "registers nothing: write @register('name') above its class"),
        (
            "from torch import nn\nclass Net(nn.Module): ...\n",
            "registers nothing: write @register('name') above its class",
        ),
        (NAMED + "class Mine:\n    size = 1\n", "'mine' is not a subclass of bdbench.defenses.Def"),
        (NAMED + CLASS, "defense 'mine' has no fit: every Defense must define it"),
        (NAMED + "class Mine(Defense):\n    size: int = 1\n" + FIT, "'mine' is not a dataclass"),
        (HEAD + "register('mine')(3)\n", "defense 'mine' must be a class or function, got 3"),
        (
            HEAD + "@register('cbd')\n" + CLASS + FIT,
            "failed at line 3: two defenses are called 'cbd', in {home}/cbd.py and {file}; rename",
        ),
    ],
)
def test_a_plugin_file_that_is_wrong_is_answered_with_what_to_do(
    text: str,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unregistered: None,
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "bad_helper.py").write_text("x = 1\ny = x / 0\n")
    (tmp_path / "no_helper.py").write_text("x = 1\ny = (\n")
    file = tmp_path / "wrong.py"
    file.write_text(text)
    before = defenses.names()
    with pytest.raises(InvalidInput) as refusal:
        load_file(file)
    home = Path(inspect.getfile(defenses.factory("cbd"))).parent
    assert complaint.format(folder=tmp_path, home=home, file=file) in str(refusal.value)
    assert defenses.names() == before


def test_a_plugin_that_refuses_its_settings_is_one_line(tmp_path: Path, unregistered: None) -> None:
    file = tmp_path / "strict.py"
    refusing = "    def __post_init__(self):\n        raise ValueError('too small')\n"
    file.write_text(NAMED + CLASS + refusing + FIT)
    load_file(file)
    said = rf"defense mine\(size=3\) failed at line 8 of {file}: ValueError: too small"
    with pytest.raises(InvalidInput, match=said):
        defenses.build("mine(size=3)")


@pytest.mark.parametrize(
    ("made", "again"),
    [
        ("self.size / 255", "from 0.03137254901960784 to 0.000123029"),
        ("self.size + 1", "from 9.0 to 10.0"),
        ("-self.size", "from -8.0 to 8.0"),
        ("min(self.size, 1.0)", None),
        ("abs(self.size)", None),
    ],
)
def test_a_setting_that_building_changes_each_time_is_refused(
    made: str, again: str | None, tmp_path: Path, unregistered: None
) -> None:
    """Each process would build another plugin, and none would find the record of another."""
    file = tmp_path / "mine.py"
    changing = f"    def __post_init__(self): object.__setattr__(self, 'size', {made})\n"
    file.write_text(NAMED + CLASS.replace("int = 1", "float = 8.0") + changing + FIT)
    load_file(file)
    plugin = defenses.factory("mine")()
    if again is None:
        settled = defenses.canonical(defenses.build("mine"))
        assert defenses.canonical(defenses.build(settled)) == settled
        assert defenses.built(plugin) is plugin
        return
    with pytest.raises(InvalidInput, match=f"^building defense 'mine' changes size {again}"):
        defenses.build("mine")
    with pytest.raises(InvalidInput, match=r"^building defense 'mine' changes size from"):
        defenses.built(plugin)


@pytest.mark.parametrize("stars", ["*parts", "**options", "size=1, *parts", "*, size=1, **options"])
def test_settings_without_a_name_are_refused(
    stars: str, tmp_path: Path, unregistered: None
) -> None:
    file = tmp_path / "mine.py"
    own = f"    def __init__(self, {stars}): self.size = 1\n"
    file.write_text(NAMED + "@dataclass(frozen=True)\nclass Mine(Defense):\n" + own + FIT)
    load_file(file)
    said = r"^\*+(parts|options) of defense 'mine' is no setting that a spec can write: give"
    with pytest.raises(InvalidInput, match=said):
        defenses.build("mine")


@pytest.mark.parametrize(
    ("stated", "reason"),
    [("'2.1'", ": invalid literal"), ("None", ": int.. argument must"), ("1.5", ", got 1.5")],
)
def test_a_version_that_is_no_integer_is_named_and_never_rounded(
    stated: str, reason: str, tmp_path: Path, unregistered: None
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"{NAMED}{CLASS}{FIT}    version = {stated}\n")
    load_file(file)
    complaint = f"version of Mine, in {file}, must be an integer{reason}"
    with pytest.raises(InvalidInput, match=complaint):
        defenses.version("mine")
    with pytest.raises(InvalidInput, match=complaint):
        cell("toy", "wrn16_1", "none", "mine", Recipe(), 0).key  # noqa: B018


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ("    target: str = 'cat'\n", "TypeError"),
        ("    @property\n    def target(self): return 0\n", "AttributeError"),
    ],
)
def test_an_error_of_a_plugin_without_a_line_of_its_own_names_its_file(
    fields: str, reason: str, tmp_path: Path, unregistered: None
) -> None:
    file = tmp_path / "mine.py"
    methods = "".join(f"    def {name}(self, *given): ...\n" for name in ("trigger", "poison"))
    head = HEAD.replace("defenses import Defense", "attacks import Attack")
    file.write_text(
        f"{head}@register('mine')\n@dataclass(frozen=True)\nclass Mine(Attack):\n{fields}{methods}"
    )
    load_file(file)
    with pytest.raises(InvalidInput, match=f"attack mine.* failed in {file}: {reason}"):
        attacks.build("mine")


def test_an_edited_plugin_file_is_loaded_again(tmp_path: Path, unregistered: None) -> None:
    file = tmp_path / "edited.py"
    for size in (1, 2):
        file.write_text(NAMED + CLASS.replace("1", str(size)) + FIT)
        load_file(file)
        assert defenses.canonical("mine") == f"mine(size={size})"


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("pass", "model 'net' returned None: net must return a bdbench.models.Classifier; is a"),
        ("return nn.Linear(3, classes)", "returned a Linear: net must return a bdbench.models.Cl"),
        (
            "return models.build('wrn16_1').build(classes - 1, size)",
            "model 'net' returned a network whose head has 9 outputs: it needs one for each of 10",
        ),
    ],
)
def test_what_a_model_returns_is_a_classifier_of_all_classes(
    body: str, complaint: str, tmp_path: Path, unregistered: None
) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\nfrom bdbench.models.registry import models\n"
        f"@models.register('net')\ndef net(classes, size):\n    {body}\n"
    )
    load_file(file)
    with pytest.raises(InvalidInput) as refusal:
        models.build("net").build(10, 16)
    assert complaint in str(refusal.value)


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the path that a plugin extends, and unload its helper."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_helper", raising=False)
    monkeypatch.setitem(sys.modules, "my_helper", None)
    del sys.modules["my_helper"]


@pytest.mark.usefixtures("paths", "unregistered")
def test_a_plugin_imports_the_helper_of_its_own_folder_only(tmp_path: Path) -> None:
    files = []
    for size in (3, 4):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "my_helper.py").write_text(f"SIZE = {size}\n")
        files.append(folder / "plugin.py")
        text = "import my_helper\n" + NAMED + CLASS.replace("1", "my_helper.SIZE") + FIT
        files[-1].write_text(text.replace("'mine'", f"'mine{size}'"))
    load_file(files[0])
    assert defenses.canonical("mine3") == "mine3(size=3)"
    with pytest.raises(InvalidInput, match=r"module 'my_helper' is .*3/my_helper.py, not .*4/"):
        load_file(files[1])
    assert str(files[1].parent) not in sys.path
    assert "mine4" not in defenses.names()


@pytest.fixture
def install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unregistered: None
) -> Iterator[Callable[..., None]]:
    """Installs a distribution, given its entry points for defenses and the text of its modules."""
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(defenses, "broken", {})
    modules = {*sys.modules}

    def add(points: dict[str, str], **texts: str) -> None:
        about = site / f"{next(iter(texts))}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about.stem}\n")
        lines = (f"{name} = {value}\n" for name, value in points.items())
        (about / "entry_points.txt").write_text("[bdbench.defenses]\n" + "".join(lines))
        for name, text in texts.items():
            (site / f"{name}.py").write_text(text)
        monkeypatch.setattr(defenses, "_discovered", False)
        monkeypatch.setattr(defenses, "_installed", Registry._installed.func(defenses))

    yield add
    for name in sys.modules.keys() - modules:
        if name.startswith("my_"):
            del sys.modules[name]


STRICT = "    def __post_init__(self):\n        if self.size < 0: raise ValueError('negative')\n"
LOOSE = NAMED + "class Mine(Defense):\n    size: int = 1\n" + FIT


def named(name: str, text: str = NAMED + CLASS + FIT) -> str:
    return text.replace("'mine'", f"'{name}'").replace("Mine", name.title())


def test_an_installed_plugin_is_found_and_blamed(install: Callable[..., None]) -> None:
    text = named("good", NAMED + CLASS + STRICT + FIT) + named("also").removeprefix(HEAD)
    install({"good": "my_good:Good"}, my_good=text)
    assert defenses.canonical("good(size=3)") == "good(size=3)"
    assert {"good", "also"} < {*defenses.names()}
    said = r"defense good\(size=-1\) failed at line 8 of .*my_good.py: ValueError: negative"
    with pytest.raises(InvalidInput, match=said):
        defenses.build("good(size=-1)")
    assert not defenses.broken


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (named("late") + "import nothing_there\n", "ModuleNotFoundError: No module named"),
        (named("late") + "raise ValueError('one\\ntwo')\n", "ValueError: one two"),
        (named("late") + "raise SystemExit(3)\n", "SystemExit: 3"),
        (named("late") + "x = (\n", "SyntaxError: '(' was never closed"),
        (named("late", LOOSE), "defense 'late' is not a dataclass: write @dataclass"),
        (named("late", NAMED + CLASS), "defense 'late' has no fit: every Defense must define it"),
        (HEAD + "Late = 3\n", "defense 'late' must be a class or function, got 3"),
        (HEAD + "late = 3\n", "AttributeError: module 'my_late' has no attribute 'Late'"),
        (named("also") + named("cbd").removeprefix(HEAD), "two defenses are called 'cbd', in"),
    ],
)
def test_a_broken_installed_plugin_costs_no_other(
    text: str, complaint: str, install: Callable[..., None]
) -> None:
    """None of what its module registers is left."""
    before = defenses.names()
    install({"late": "my_late:Late"}, my_late=text)
    install({"good": "my_good:Good"}, my_good=named("good"))
    assert {*defenses.names()} == {*before, "good"}
    assert list(defenses.broken) == ["late"]
    assert complaint in defenses.broken["late"]
    assert "\n" not in defenses.broken["late"]
    with pytest.raises(InvalidInput, match="defense 'late' failed to import: "):
        defenses.build("late")
    assert defenses.build("good")


def test_an_unusable_class_beside_an_installed_plugin_is_left_out(
    install: Callable[..., None],
) -> None:
    text = named("good") + named("half", LOOSE).removeprefix(HEAD)
    install({"good": "my_both:Good", "half": "my_both:Half"}, my_both=text)
    assert defenses.build("good")
    assert "half" not in defenses.names()
    assert "defense 'half' is not a dataclass" in defenses.broken["half"]


def test_two_installed_plugins_of_one_name_are_refused(install: Callable[..., None]) -> None:
    install({"twice": "my_one:Twice"}, my_one=named("twice"))
    install({"twice": "my_two:Twice", "good": "my_two:Good"}, my_two=named("good"))
    with pytest.raises(InvalidInput) as refusal:
        defenses.build("twice")
    for part in ("my_one:Twice", "my_two:Twice", "have this name; uninstall one of them"):
        assert part in str(refusal.value)
    assert defenses.build("good")


def test_a_file_without_a_plugin_gives_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "patch.py"
    file.write_text("import os\n\nclass Other(dict):\n    pass\n")
    with pytest.warns(RegistersNothing, match=r"plugin '.*patch.py' registers nothing"):
        load_file(file)
    load_file(file)


# Documentation


@pytest.mark.parametrize("kind", REGISTRIES)
def test_docstrings_are_read_also_where_python_drops_them(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -OO` and PYTHONOPTIMIZE=2."""
    registry = REGISTRIES[kind]
    built_in = [name for name in registry.names() if registry.origin(name) == "built in"]
    factories = list(map(registry.factory, built_in))

    def texts() -> list[tuple[str, str]]:
        return [(about_module(each), about_fields(each)) for each in factories]

    usual = texts()
    optimised = SimpleNamespace(flags=SimpleNamespace(optimize=2))
    monkeypatch.setattr("bdbench.models.plugins.documentation.sys", optimised)
    assert texts() == usual
    assert all(module for module, _ in usual)

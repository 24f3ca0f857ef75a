"""The rules by which defenses are compared: made from the code, complete, and on the page."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import ROOT

from bdbench.cli import main
from bdbench.cli.protocol import SOURCES, paragraph, protocol, settings
from bdbench.defenses.registry import defenses
from bdbench.models.plugins import spec

NAMES = defenses.names()
"""Before any test registers one of its own."""


@pytest.mark.parametrize("name", defenses.names())
def test_every_default_has_a_source(name: str) -> None:
    found = settings(defenses.factory(name))
    assert [each.name for each in found] == list(spec.fields_of(defenses.factory(name)))
    for each in found:
        assert each.meaning, f"{each.name} has no docstring"
        assert SOURCES.search(each.source), f"{each.name} has no source"


@pytest.mark.parametrize("name", [name for name in defenses.names() if name != "none"])
def test_every_defense_says_what_differs_here_and_elsewhere(name: str) -> None:
    for word in ("Differs", "Elsewhere"):
        assert len(paragraph(defenses.factory(name), word)) > 20, word


def test_meaning_and_source_are_told_apart() -> None:
    by_name = {each.name: each for each in settings(defenses.factory("nad"))}
    assert by_name["p"].meaning == "exponent of the attention map, at least 1"
    assert by_name["p"].source == "paper: 2"
    assert by_name["p"].default == 2.0
    # A pair of fields shares a line, and brackets that name no source stay.
    both = {each.name: each for each in settings(defenses.factory("dbd"))}
    assert both["ce_weight"].meaning == both["rce_weight"].meaning
    assert both["alpha"].meaning == "share of the images that keep their labels, in (0, 1)"


def test_a_field_keeps_its_condition_and_a_value_its_source() -> None:
    by_name = {each.name: each for each in settings(defenses.factory("abl"))}
    for name in ("joint_updates", "isolated_share"):
        assert by_name[name].meaning.startswith("only for the joint objective: ")
    for name in ("unlearning_epochs", "drop_limit"):
        assert by_name[name].meaning.startswith("only for the sequential objective: ")
    assert "only for" not in by_name["objective"].meaning
    # The default is "joint".
    assert '"joint" (paper) or the "sequential" objective (code)' in by_name["objective"].meaning
    assert by_name["objective"].source == "paper"


def test_the_page_has_what_the_code_says() -> None:
    page = (ROOT / "defenses/README.md").read_text("utf-8")
    assert protocol(NAMES) in page, "make it again with `bdbench describe --protocol`"


def test_what_is_given_is_that_of_the_class() -> None:
    text = protocol(["mcr", "cbd", "clp", "spectral"])
    # It looks at an undefended network and trains another one.
    assert "| `spectral` | an undefended network | none | from scratch |" in text
    assert "| `mcr` | 2 undefended networks | 5 % | on the clean images |" in text
    assert "| `cbd` | new networks | none | from scratch |" in text
    assert "| `clp` | an undefended network | none | none |" in text
    assert "`nad`" not in text.partition("### What a defense is given")[2].partition("### Hyper")[0]


def test_the_command_prints_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, unregistered: None
) -> None:
    assert main(["describe", "--protocol", "ft"]) == 0
    assert capsys.readouterr().out == protocol(["ft"]) + "\n"
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from bdbench.defenses import Defense, register\n\n\n"
        "@register('mine')\n@dataclass(frozen=True)\nclass Mine(Defense):\n"
        '    """side: of a square, pixels"""\n\n'
        "    side: int = 8\n\n"
        "    def fit(self, data, context):\n        return context.build().eval()\n"
    )
    assert main(["describe", "--protocol", "mine", "--plugin", str(plugin)]) == 0
    assert "| `side` | `8` | of a square, pixels | - |" in capsys.readouterr().out


def test_a_wrong_name_or_none_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "--protocol", "ndd"]) == 2
    assert "did you mean 'nad'?" in capsys.readouterr().err
    assert main(["describe"]) == 2
    assert capsys.readouterr().err == (
        "bdbench: describe needs a NAME, or --protocol; `bdbench list` lists names\n"
    )

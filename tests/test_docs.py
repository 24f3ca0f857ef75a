"""The pages: commands and examples run, quoted tables match the published ones, links resolve.

All cases are read from the pages.
"""

from __future__ import annotations

import configparser
import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from builders import ROOT
from test_results import PUBLISHED

import bdbench as bd
from bdbench.attacks.registry import attacks
from bdbench.cells.cell import cell, recipe_fields
from bdbench.cells.suites import SUITES
from bdbench.cli import main
from bdbench.cli.group import cli
from bdbench.datasets.registry import datasets
from bdbench.defenses.registry import defenses
from bdbench.models.plugins.files import load_file
from bdbench.models.plugins.registry import Registry
from bdbench.models.registry import models
from bdbench.models.training.recipe import Recipe
from bdbench.running import speed
from bdbench.storage.cache import Cache
from bdbench.tables.block import CLEAN, NO_CLEAN
from bdbench.trial.harness import Harness

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "DECISIONS.md",
    "attacks/README.md",
    "defenses/README.md",
    "benchmark/README.md",
    "results/README.md",
    "results/PLANNING.md",
    "results/archive/README.md",
)
TEXTS = {page: (ROOT / page).read_text("utf-8") for page in PAGES}
LONGEST_PAGE, LONGEST_PLUGIN, LONGEST_DECISION = 150, 30, 10
"""Lines of README.md, of a plugin in CONTRIBUTING.md, and of a decision with its heading."""

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
QUOTE = re.compile(r"^<!-- ([\w/-]+) (\w+) -->\n(.*?)\n<!-- end -->$", re.MULTILINE | re.DOTALL)
PROGRAM = ("bdbench", ".venv/bin/bdbench", "python -m bdbench")
OTHERS = ("python -m venv", ".venv/bin/pip install", ".venv/bin/pytest", "export BDBENCH_DATA=")
"""First words of shell lines that run neither bdbench nor make."""
AXES: dict[str, Registry[Any]] = {
    "attack": attacks,
    "defense": defenses,
    "dataset": datasets,
    "model": models,
}

NOT_RUN = {
    "bdbench run table1-cifar10 --device cuda:1": "two GPUs",
    "bdbench data preview blend --dataset cifar10": "CIFAR-10",
    "bdbench data get cifar10": "the network",
    "bdbench data get cifar100": "the network",
    "bdbench data prepare cifar100": "CIFAR-100",
    "bdbench data prepare \"folder(path='photos', size=64, test_share=0.2)\"": "photos",
    "bdbench evaluate results/table1-cifar10/networks/31d015441a3894a8.safetensors"
    " --dataset cifar10 --attack badnets --defense nad": "CIFAR-10",
    "bdbench evaluate my_network.safetensors --model resnet18 --dataset cifar10 --attack badnets"
    " --defense ft": "a network",
    "bdbench export KEY --results results/quick --out exported": "a cell that was run",
}
"""Commands that are only parsed, and what they would need to run."""
STAND_INS = {
    "quick": "archive/abl-without-limits",
    "a": "archive/abl-without-limits",
    "b": "table1-cifar10-bf16",
}
"""Result folders that a reader makes, and the published ones that stand in for them."""
QUOTED = {
    ("README.md", "table1-cifar10", "leaderboard"),
    ("results/README.md", "table1-cifar10-bf16", "table1"),
    ("results/README.md", "table1-cifar10", "table1"),
    ("results/archive/README.md", "archive/cifar10-small", "leaderboard"),
    ("results/archive/README.md", "archive/cifar10-small", "table1"),
    ("README.md", "digits", "leaderboard"),
    ("results/README.md", "digits", "leaderboard"),
}
"""Tables that a page quotes."""


@dataclass(frozen=True)
class Block:
    """A block of code on a page.

    start, end: its position in the text of the page
    """

    page: str
    language: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Plugin:
    """A block that registers a plugin, and the file name that its page gives it."""

    block: Block
    file: str


BLOCKS = [
    Block(page, match[2], match[3], match.start(), match.end())
    for page, text in TEXTS.items()
    for match in FENCE.finditer(text)
]
PROSE = {page: FENCE.sub("", text) for page, text in TEXTS.items()}
SPANS = [
    (page, " ".join(span.split()))
    for page, text in PROSE.items()
    for span in re.findall(r"`([^`]+)`", text)
]
"""Inline code."""


def lines_of(block: Block) -> list[str]:
    """The commands of a block, without comments."""
    lines = (re.sub(r"(^|\s+)# .*", "", line) for line in block.text.splitlines())
    return [line for line in lines if line]


def arguments_of(line: str) -> list[str] | None:
    """The arguments of a bdbench command; None for another program."""
    words = shlex.split(line)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    for program in map(str.split, PROGRAM):
        if words[: len(program)] == program:
            return words[len(program) :]
    return None


def file_of(block: Block) -> str:
    """The plugin file that the next commands on the page name."""
    following = next(
        each
        for each in BLOCKS
        if (each.page, each.language) == (block.page, "sh") and each.start > block.start
    )
    found = re.search(r"\b\w+\.py\b", following.text)
    assert found is not None, f"no command uses the plugin on {block.page}"
    return found[0]


LINES = [
    (block.page, line) for block in BLOCKS if block.language == "sh" for line in lines_of(block)
]
COMMANDS = list(dict.fromkeys(line for _, line in LINES if arguments_of(line) is not None))
RUN = [line for line in COMMANDS if line not in NOT_RUN]
PYTHON = [block for block in BLOCKS if block.language == "python"]
PLUGINS = [
    Plugin(block, file_of(block))
    for block in PYTHON
    if re.search(r"^@register\(", block.text, re.M)
]
PROGRAMS = [block for block in PYTHON if re.search(r"^import bdbench as bd$", block.text, re.M)]
ALONE = [block for block in PYTHON if "bdbench" not in block.text]
"""Programs that need no bdbench; see `test_own_networks.py`."""


@pytest.fixture(scope="module")
def cache_of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unregistered: None, cache_of_all: Path
) -> Path:
    """The working folder of a reader who has saved the plugins and the suites of all pages. The
    comment on the first line of a suite names its file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BDBENCH_CACHE", str(cache_of_all))
    for plugin in PLUGINS:
        (tmp_path / plugin.file).write_text(plugin.block.text, "utf-8")
    for block in BLOCKS:
        if block.language == "toml":
            (tmp_path / block.text.split()[1]).write_text(block.text, "utf-8")
    return tmp_path


def copy_results(text: str, reader: Path) -> None:
    """Copy the result folders that a text names."""
    for name in set(re.findall(r"\bresults/([\w-]+)", text)):
        published = STAND_INS.get(name, name)
        if published in PUBLISHED:
            shutil.copytree(ROOT / "results" / published, reader / "results" / name)


def context_of(line: str) -> click.Context:
    """Parse a command without running it. Raises `click.ClickException` if it is invalid."""
    command: click.Command = cli
    words = arguments_of(line)
    assert words is not None
    name = "bdbench"
    while isinstance(command, click.Group):
        assert words, f"{line} names no command"
        name = words.pop(0)
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"{name} is not a command"
        command = found
    return command.make_context(name, words)


def check_specs(parameters: dict[str, Any]) -> None:
    """Raises `InvalidInput` for an invalid spec."""
    for axis, registry in AXES.items():
        given = parameters.get(axis) or ()
        for text in [given] if isinstance(given, str) else given:
            registry.swept(text)
    given = parameters.get("recipe") or ()
    for text in [given] if isinstance(given, str) else given:
        recipe_fields(text)


def test_the_pages_have_what_is_tested_here() -> None:
    """So that a rewritten page does not leave a test below empty."""
    assert {block.language for block in BLOCKS} == {"sh", "python", "ini", "toml", ""}
    assert {plugin.file for plugin in PLUGINS} == {
        "strong_cutout.py",
        "my_defense.py",
        "my_attack.py",
        "my_model.py",
        "my_dataset.py",
    }
    assert [block.page for block in PROGRAMS].count("README.md") == 1
    assert [block.page for block in PROGRAMS].count("benchmark/README.md") == 2
    assert [block.page for block in ALONE] == ["benchmark/README.md"]
    assert len(PLUGINS) + len(PROGRAMS) + len(ALONE) == len(PYTHON)
    assert {page for page, _ in LINES} == set(PAGES) - {
        "DECISIONS.md",
        "defenses/README.md",
        "results/archive/README.md",
    }


@pytest.mark.parametrize(("page", "line"), LINES, ids=str)
def test_a_line_of_the_shell_is_a_known_program(page: str, line: str) -> None:
    target = re.fullmatch(r"make ([\w-]+)", line)
    if target:
        assert re.search(rf"^{target[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        assert arguments_of(line) is not None or line.startswith(OTHERS), line


def test_every_make_target_in_the_text_exists() -> None:
    rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [match[1] for _, span in SPANS if (match := re.fullmatch(r"make ([\w-]+)", span))]
    assert named
    assert set(named) <= set(rules)


@pytest.mark.parametrize("line", COMMANDS, ids=str)
def test_a_command_has_only_options_and_plugins_that_exist(line: str, reader: Path) -> None:
    parameters = context_of(line).params
    for path in parameters.get("plugin") or ():
        load_file(path)
    check_specs(parameters)


def test_commands_in_the_text_have_only_options_that_exist() -> None:
    """Arguments may be missing, and names such as KEY are placeholders."""
    named = [span for _, span in SPANS if span.startswith("bdbench ")]
    assert len(named) > 10
    for span in named:
        try:
            parameters = context_of(span).params
        except click.MissingParameter:
            continue
        check_specs({key: n for key, n in parameters.items() if not str(n).isupper()})


def test_specs_in_the_text_are_right() -> None:
    known = {name: registry for registry in AXES.values() for name in registry.names()}
    calls = [re.fullmatch(r"(\w+)\(\w+=.*\)", span) for _, span in SPANS]
    given = [call for call in calls if call and call[1] in {*known, "recipe"}]
    assert len(given) > 10
    for call in given:
        if call[1] == "recipe":
            recipe_fields(call[0])
        else:
            known[call[1]].swept(call[0])


def options_of(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        yield from parameter.opts
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from options_of(inner)


def test_options_in_the_text_exist() -> None:
    named = {match[0] for _, span in SPANS if (match := re.match(r"--[\w-]+", span))}
    assert len(named) > 10
    assert named <= set(options_of(cli))


@pytest.mark.parametrize("line", RUN, ids=str)
def test_a_command_runs(line: str, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bdbench run` gets --dry-run and a fixed speed, so nothing is measured."""
    monkeypatch.setattr(speed, "probe", lambda *arguments: 1e6)
    copy_results(line, reader)
    words = arguments_of(line)
    assert words is not None
    if words[0] == "run":
        words.append("--dry-run")
    assert main(words) == 0


def test_commands_that_are_not_run_stand_on_a_page() -> None:
    assert NOT_RUN.keys() <= set(COMMANDS)


def test_contributing_has_a_plugin_of_each_kind() -> None:
    printed = [each.block.text for each in PLUGINS if each.block.page == "CONTRIBUTING.md"]
    found = r"^from bdbench\.(\w+) import .*\bregister\b"
    kinds = [re.findall(found, text, re.M) for text in printed]
    assert kinds == [["defenses"], ["attacks"], ["models"], ["datasets"]]
    assert max(len(text.splitlines()) for text in printed) <= LONGEST_PLUGIN


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.file)
def test_a_printed_plugin_goes_through_a_cell(plugin: Plugin, reader: Path) -> None:
    known = {axis: {*registry.names()} for axis, registry in AXES.items()}
    load_file(reader / plugin.file)
    fresh = {axis: {*registry.names()} - known[axis] for axis, registry in AXES.items()}
    ((axis, name),) = ((axis, name) for axis, names in fresh.items() for name in names)
    axes = {
        "dataset": "toy(train_images=100, test_images=50, image_size=16)",
        "model": "wrn16_1",
        "attack": "badnets",
        "defense": "none",
    }
    axes[axis] = f"{name}(train_images=100)" if axis == "dataset" else name
    record = Harness(Cache(reader / "cache"), [], torch.device("cpu")).run(
        cell(**axes, recipe=Recipe(epochs=1, batch_size=32, padding=0), seed=0)
    )
    assert record.status == "ok", record.error
    assert record.diagnostics.poisoned_images == 10


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: f"{block.page}:{block.start}")
def test_a_printed_program_runs(block: Block, reader: Path) -> None:
    """Unchanged, as the main module."""
    copy_results(block.text, reader)
    file = reader / "printed.py"
    file.write_text(block.text, "utf-8")
    runpy.run_path(str(file), run_name="__main__")


def test_the_python_names_in_the_text_exist() -> None:
    named = {name for _, span in SPANS for name in re.findall(r"\bbd\.(\w+)", span)}
    assert len(named) > 5
    for name in named:
        assert hasattr(bd, name), name


def test_quoted_tables_are_the_published_ones() -> None:
    quotes = [(page, *quote) for page, text in TEXTS.items() for quote in QUOTE.findall(text)]
    assert sum(text.count("<!-- ") for text in TEXTS.values()) == 2 * len(quotes)
    assert {(page, suite, table) for page, suite, table, _ in quotes} >= QUOTED
    for _, suite, table, text in quotes:
        assert text in (ROOT / f"results/{suite}/tables/{table}.md").read_text("utf-8")


def test_the_table_of_quick_has_its_defenses() -> None:
    quick = SUITES["quick"]
    shown = next(
        text for suite, _, text in QUOTE.findall(TEXTS["results/README.md"]) if suite == "digits"
    )
    rows = re.findall(r"^\| (\S.*?) +\|", shown, re.MULTILINE)
    sections = {NO_CLEAN, CLEAN}
    assert sorted(row for row in rows[1:] if row not in sections) == sorted(
        quick.settings.get(str(d), str(d)) for d in quick.defenses
    )


def anchors(text: str) -> set[str]:
    """The anchors that GitHub derives from the headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", PROSE[page]):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text("utf-8")), link


def test_paths_in_the_text_exist() -> None:
    """Relative to the root of the repository; names such as SUITE are placeholders."""
    path = r"(attacks|benchmark|defenses|models|results|tests)/[\w./-]*"
    named = {span for _, span in SPANS if re.fullmatch(path, span)}
    assert len(named) > 5
    for name in named:
        assert re.search(r"[A-Z]{2}", name) or (ROOT / name).exists(), name


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= LONGEST_PAGE


def test_decisions_are_short_and_in_five_sections() -> None:
    sections = re.findall(r"^## (.+)$", TEXTS["DECISIONS.md"], re.MULTILINE)
    assert sections == ["Method", "Attack", "Harness", "Tables", "Tests"]
    for decision in re.findall(r"^### .+(?:\n.+)+", TEXTS["DECISIONS.md"], re.MULTILINE):
        assert len(decision.splitlines()) <= LONGEST_DECISION, decision
        assert max(map(len, decision.splitlines())) <= 120, decision


def test_the_layout_names_the_rooms_and_their_files() -> None:
    rows = re.findall(r"^\| `(\w+)/` \| [^|]+ \| (.+) \|$", TEXTS["benchmark/README.md"], re.M)
    shown = {room: set(re.findall(r"`([^`]+)`", files)) for room, files in rows}
    there = {
        folder.name: {path.stem for path in folder.glob("*.py")} - {"__init__"}
        | {f"{path.name}/" for path in folder.iterdir() if path.is_dir()} - {"__pycache__/"}
        for folder in (ROOT / "benchmark").iterdir()
        if (folder / "__init__.py").exists()
    }
    assert {room: files for room, files in shown.items() if room in there} == there


def test_the_order_of_the_rooms_is_the_one_that_is_checked() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    layers = settings["importlinter:contract:rooms"]["layers"].split("\n")
    printed = next(
        block.text
        for block in BLOCKS
        if (block.page, block.language) == ("benchmark/README.md", "")
    )
    shown = [line.partition("  ")[0] for line in printed.splitlines()]
    assert shown == [layer for layer in layers if layer]


@pytest.mark.parametrize(
    ("page", "registry"), [("attacks/README.md", attacks), ("defenses/README.md", defenses)]
)
def test_every_method_has_a_row(page: str, registry: Registry[Any]) -> None:
    text = TEXTS[page]
    described = text[text.index("## One by one") : text.index("## ", text.index("Beyond"))]
    assert sorted(re.findall(r"^\| `(\w+)` \|", described, re.MULTILINE)) == sorted(
        registry.names()
    )


def test_the_numbers_of_defenses_are_theirs() -> None:
    """Clean share and work, as the code states them."""
    row = r"^\| `(\w+)` \|[^|]*\| (\S+(?: %)?) \| ([\d.]+) \|"
    rows = re.findall(row, TEXTS["defenses/README.md"], re.MULTILINE)
    assert len(rows) == len(defenses.names())
    recipe = Recipe()
    for name, clean, work in rows:
        built = defenses.build(name)
        assert clean.removesuffix(" %") == f"{100 * built.clean_fraction:g}", name
        assert work == f"{built.cost(recipe, 50_000) / (3 * recipe.epochs):.2f}", name

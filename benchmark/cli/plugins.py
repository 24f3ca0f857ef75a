"""The commands about plugins: `bdbench list`, `describe` and `check`."""

from __future__ import annotations

from pathlib import Path

import click

from bdbench.cli.group import cli, load_plugins, say
from bdbench.cli.options import PLUGIN
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import one_line, require


@cli.command(name="list")
@click.argument("kinds", nargs=-1, metavar="[attacks|defenses|models|datasets|suites]...")
@PLUGIN
def list_plugins(kinds: tuple[str, ...], plugin: tuple[Path, ...]) -> None:
    """List plugins and suites, and where they come from."""
    known = ["attacks", "defenses", "models", "datasets", "suites"]
    for kind in kinds:
        require(kind in known, f"unknown kind {kind!r}{spec.did_you_mean(kind, known)}")
    from bdbench.cli.catalogue import catalogue

    load_plugins(plugin)
    say(catalogue(list(kinds) or known))


@cli.command()
@click.argument("name", required=False)
@click.option("--protocol", is_flag=True, help="Show how defenses are compared, in Markdown.")
@click.option("--toml", is_flag=True, help="Print a suite as a file for `bdbench run`.")
@PLUGIN
def describe(name: str | None, protocol: bool, toml: bool, plugin: tuple[Path, ...]) -> None:
    """Describe a plugin or a suite.

    A plugin is described by its fields, defaults and their sources; a defense also by its cost.
    With --protocol, show the rules that all defenses are compared by, what each defense is given,
    and the source of each hyperparameter; with NAME, those of one defense. With --toml, print a
    suite as a file to start your own from.
    """
    if toml:
        require(not protocol, "--toml is for a suite and --protocol for defenses: give one of them")
        require(name is not None, "--toml needs the NAME of a suite, such as quick")
        from bdbench.cells.suite_file import find, written

        found = find(str(name))
        load_plugins(plugin)
        found.prepare()
        say(written(found.suite, dict.fromkeys((*plugin, *found.plugins))).rstrip())
        return
    from bdbench.cli import catalogue

    load_plugins(plugin)
    if protocol:
        from bdbench.cli.protocol import protocol as page

        say(page([name] if name else []))
    else:
        require(
            name is not None, "describe needs a NAME, or --protocol; `bdbench list` lists names"
        )
        assert name is not None
        say(catalogue.description(name))


@cli.command(name="check")
@click.argument("what", metavar="FILE_OR_NAME")
@PLUGIN
def check(what: str, plugin: tuple[Path, ...]) -> int:
    """Check plugins against the contract.

    FILE_OR_NAME is a file, of which every plugin is checked, or the name or spec of a plugin.

    Exit codes: 0 every promise is kept, 1 a promise is broken, 2 bad usage or input.
    """
    from bdbench.contract.promises import check_plugin, resolve

    load_plugins(plugin)
    failures = 0
    marks = {True: "ok     ", False: "BROKEN ", None: "-      "}
    for kind, name in resolve(what):
        say(f"{kind} {name}")
        for verdict in check_plugin(kind, name):
            say(f"  {marks[verdict.kept]}{verdict.promise.sentence}")
            failures += verdict.kept is False
            if verdict.why is not None:
                say(f"         {one_line(verdict.why)}")
    return 1 if failures else 0

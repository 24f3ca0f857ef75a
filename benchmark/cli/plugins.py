"""What there is, and whether a plugin keeps its promises."""

from __future__ import annotations

from pathlib import Path

import click

from bdbench.cli.group import FILE, cli, load_plugins, say
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import one_line, require


@cli.command(name="list")
@click.argument("kinds", nargs=-1, metavar="[attacks|defenses|models|datasets|suites]...")
@click.option("--plugin", type=FILE, multiple=True, help="A file that registers a plugin.")
def list_plugins(kinds: tuple[str, ...], plugin: tuple[Path, ...]) -> None:
    """Show what there is: names, one line each, and where it comes from."""
    known = ["attacks", "defenses", "models", "datasets", "suites"]
    for kind in kinds:
        require(kind in known, f"unknown kind {kind!r}{spec.did_you_mean(kind, known)}")
    from bdbench.cli.catalogue import catalogue

    load_plugins(plugin)
    say(catalogue(list(kinds) or known))


@cli.command()
@click.argument("name", required=False)
@click.option("--protocol", is_flag=True, help="By which rules defenses are compared, in Markdown.")
@click.option("--toml", is_flag=True, help="Print a suite as a file for `bdbench run`.")
@click.option("--plugin", type=FILE, multiple=True, help="A file that registers a plugin.")
def describe(name: str | None, protocol: bool, toml: bool, plugin: tuple[Path, ...]) -> None:
    """Show fields, defaults, source and cost of an attack, defense, model, data set or suite.

    With --protocol, show what defenses are lent, where each of their hyperparameters comes from,
    and the rules for all; of one defense if NAME is given. With --toml, print a suite as a file to
    start one's own from.
    """
    if toml:
        require(not protocol, "--toml is of a suite and --protocol of defenses: give one of them")
        require(name is not None, "--toml needs the NAME of a suite, such as quick")
        from bdbench.cells.suite_file import find, written

        say(written(find(str(name)).suite).rstrip())
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
@click.option("--plugin", type=FILE, multiple=True, help="A file that registers a plugin.")
def check(what: str, plugin: tuple[Path, ...]) -> int:
    """Test a plugin against the contract: a file that registers some, or a name.

    Exit codes: 0 every promise is kept, 1 one is broken, 2 there is no such plugin.
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

"""`groundling data list|get|dialogues|inspect`."""

from collections.abc import Sequence
from dataclasses import dataclass

from groundling import config
from groundling.data import datasets


def main(argv: Sequence[str]) -> int:
    """Run `groundling data list|get|dialogues|inspect`."""
    commands = {
        "list": (_list, "show the named data sets: source, licence, size, sha256"),
        "get": (_get, "fetch a data set if necessary, and print its path"),
        "dialogues": (_dialogues, "write the dialogues of plays as JSON lines for fine-tuning"),
        "inspect": (_inspect, "show examples as the model sees them, and which tokens are trained on"),
    }
    return config.run_subcommand(argv, commands, "groundling data")


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """Show the named data sets: source, licence, size, sha256, and whether they are downloaded."""


def _list(argv: list[str]) -> int:
    config.parse(ListConfig, argv, "groundling data list")
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "bytes", "here", show_lines=True)
    table.add_column("description, licence, source, SHA-256", overflow="fold")
    for source in datasets.SOURCES.values():
        routes = [*source.urls, f"pip: the {source.package.form} of {source.package.requirement}"]
        facts = [source.title, source.licence, *routes, source.sha256]
        here = "yes" if datasets.is_here(source) else "no"
        table.add_row(source.name, f"{source.n_bytes:,}", here, "\n".join(facts))
    Console().print(table)
    return 0


def _get(argv: list[str]) -> int:
    import tyro

    @dataclass(frozen=True)
    class GetConfig:
        """Fetch a data set if necessary, and print its path."""

        name: tyro.conf.Positional[str]
        """A name that `groundling data list` shows."""

    print(datasets.get(config.parse(GetConfig, argv, "groundling data get").name))
    return 0


# Imported when called: both need NumPy, which the other commands do not.


def _dialogues(argv: list[str]) -> int:
    from groundling.data import dialogues

    return dialogues.main(argv)


def _inspect(argv: list[str]) -> int:
    from groundling.data import inspect

    return inspect.main(argv)

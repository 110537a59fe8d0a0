"""`rtsim show NAME`: what is known about a model, a GPU or a profile."""

from __future__ import annotations

import click

from rtsim.cli.parameters import deliver, json_option


@click.command("show")
@click.argument("name", metavar="NAME|FILE.toml")
@json_option
def command(name: str, as_json: bool) -> None:
    """Show a model, a GPU or a profile, by name, alias or file."""
    from rtsim import describe, report

    found = describe.describe(name)
    deliver(
        lambda: found.data,
        lambda: report.facts_view(found.title, found.facts),
        as_json=as_json,
    )

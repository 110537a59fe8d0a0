"""`rtsim list models|gpus|profiles`: names only, so that it stays fast."""

from __future__ import annotations

import click

from rtsim.cli.parameters import json_option


@click.command("list")
@click.argument("what", type=click.Choice(["models", "gpus", "profiles"]))
@json_option
def command(what: str, as_json: bool) -> None:
    """List the known models, gpus or profiles with their other names."""
    from rtsim import catalog, describe

    if what == "profiles":
        named: dict[str, tuple[str, ...]] = dict.fromkeys(describe.profile_names(), ())
    else:
        named = catalog.aliases("models" if what == "models" else "gpus")
    if as_json:
        import json

        rows = [{"name": name, "aliases": list(others)} for name, others in named.items()]
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(map(len, named), default=0)
    for name, others in named.items():
        click.echo(f"{name:<{width}}  {', '.join(others)}".rstrip())

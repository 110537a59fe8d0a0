"""`rtsim show NAME`: what is known about a model, a GPU or a profile; templates for new ones."""

from __future__ import annotations

import click

from rtsim.cli.parameters import deliver, json_option, set_option


@click.command("show")
@click.argument("name", metavar="[NAME|FILE]", required=False)
@click.option(
    "--template",
    type=click.Choice(["gpu", "model"]),
    help="Print a commented TOML file of the necessary figures, to fill in.",
)
@set_option
@json_option
def command(
    name: str | None,
    template: str | None,
    set: dict[str, str] | None,  # noqa: A002 (the option's name)
    as_json: bool,
) -> None:
    """Show a model, a GPU or a profile, by name, alias or .toml file; a model by its config.json.

    With --template instead of a name: a TOML file to start a new GPU or model from.
    """
    if template is not None:
        if name is not None or set is not None or as_json:
            raise click.UsageError("--template stands alone, without a name, --set or --json")
        from rtsim.catalog import template as template_text

        click.echo(template_text("gpus" if template == "gpu" else "models"), nl=False)
        return
    if name is None:
        raise click.UsageError("missing argument 'NAME|FILE', or --template gpu|model")
    from rtsim import console, describe

    found = describe.describe(name, set)
    deliver(
        lambda: found.data,
        lambda: console.facts_view(found.title, found.facts),
        as_json=as_json,
    )

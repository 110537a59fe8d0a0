"""`rtsim check-data`: the linter of the packaged data files."""

from __future__ import annotations

import click

from rtsim.cli.status import BAD_INPUT


@click.command("check-data")
def command() -> None:
    """Check every packaged model, GPU and profile file; exit status 2 where one is faulty."""
    from rtsim.check_data import check_data
    from rtsim.check_profiles import check_profiles

    findings = [*check_data(), *check_profiles()]
    for finding in findings:
        click.echo(finding)
    if findings:
        click.echo(f"error: {len(findings)} findings in the packaged data", err=True)
        click.get_current_context().exit(BAD_INPUT)
    click.echo("the packaged data is in order")

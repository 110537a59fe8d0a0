"""`rtsim import-hf config.json`: a Hugging Face configuration as a model in rtsim's format."""

from __future__ import annotations

import click


@click.command("import-hf")
@click.argument("config", metavar="CONFIG.json|FOLDER")
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FILE.toml",
    help="Write to FILE instead of printing; a file that is there is replaced.",
)
def command(config: str, output: str | None) -> None:
    """Print or write the model that a config.json describes, as TOML.

    What was assumed or left out is in its notes. The file can be edited and used as --arch.
    """
    from rtsim.errors import OutputError
    from rtsim.hf import read_config
    from rtsim.model_toml import to_toml

    if output is not None and not output.lower().endswith(".toml"):
        raise OutputError(output, "a model's file must end in .toml")
    model = read_config(config)
    text = to_toml(model, f"{model.name}, from a Hugging Face configuration.")
    if output is None:
        click.echo(text, nl=False)
        return
    from rtsim.output import write_text

    write_text(output, text)

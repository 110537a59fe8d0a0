"""`rtsim compare`: models, GPUs and stacks side by side."""

from __future__ import annotations

import click

from rtsim.cli.parameters import count, deliver, json_option, output_option


def _names(context: click.Context, parameter: click.Parameter, text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


@click.command("compare")
@click.option("--arch", metavar="A,B,...", callback=_names, help="Models: names or .toml files.")
@click.option("--gpu", metavar="A,B,...", callback=_names, help="GPUs; a100 if none is named.")
@click.option("--stack", metavar="A,B,...", callback=_names, help="Software stacks.")
@click.option("--study", metavar="NAME|FILE", help="Models with their GPU counts, such as paper.")
@click.option("--input-len", type=count, metavar="P", help="Prompt tokens.  [default: 512]")
@click.option("--output-len", type=count, metavar="O", help="Generated tokens.  [default: 64]")
@click.option("--batch-size", type=count, default=1, metavar="N", help="Sequences at a time.")
@click.option(
    "--num-gpus", type=count, metavar="N", help="GPUs of every model; else the fewest that hold it."
)
@click.option(
    "--energy-model",
    default="power",
    metavar="power|utilisation",
    show_default=True,
    help="Energy by rated power, or by how much of the GPU is used.",
)
@click.option("--plot", type=click.Path(), metavar="FILE", help="Draw to FILE (.png, .svg, .pdf).")
@json_option
@output_option
def command(
    arch: list[str],
    gpu: list[str],
    stack: list[str],
    study: str | None,
    input_len: int | None,
    output_len: int | None,
    batch_size: int,
    num_gpus: int | None,
    energy_model: str,
    plot: str | None,
    as_json: bool,
    output: str | None,
) -> None:
    """Compare idealized runtime, cost and energy of models on equal footing.

    Systems of one model on several GPUs or stacks are compared with its first one, with the groups
    of operators that the difference is owed to. -o FILE.csv writes a table.
    """
    from rtsim.cli import compare_view
    from rtsim.compare import compare
    from rtsim.errors import SpecError
    from rtsim.study import load_study

    chosen = None if study is None else load_study(study)
    if chosen is not None:
        arch = arch or [model.arch for model in chosen.models]
        gpu = gpu or [chosen.gpu]
        stack = stack or [chosen.stack]
        input_len = input_len or chosen.input_len
        output_len = output_len or chosen.output_len
    if not arch:
        raise SpecError("arch", "", "name models, such as --arch gpt3-175b,opt-66b, or a --study")
    if plot is not None:
        from rtsim.plots import check_plot_file

        check_plot_file(plot)
    result = compare(
        arch,
        gpu or ["a100"],
        stack or [None],
        input_len=512 if input_len is None else input_len,
        output_len=64 if output_len is None else output_len,
        batch_size=batch_size,
        num_gpus=num_gpus,
        study=chosen,
        energy_model=energy_model,  # type: ignore[arg-type]  # checked there
    )
    if plot is not None:
        from rtsim.plots_paper import plot_comparison

        plot_comparison(result, plot)
    if output is not None and output.endswith((".csv", ".parquet")):
        from rtsim.table_text import write_table

        write_table(output, compare_view.to_columns(result))
        return
    deliver(
        lambda: compare_view.to_json(result),
        lambda: compare_view.view(result),
        as_json=as_json,
        output=output,
    )

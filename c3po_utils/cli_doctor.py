"""`c3po doctor`: what this machine can do, and whether what is fast here is right."""

from __future__ import annotations

import click

from c3po_utils.cli_errors import told


@click.command()
@click.argument("model", default="")
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16", show_default=True,
              help="Of the model's weights; runs use bfloat16.")  # fmt: skip
@click.option("--reset", is_flag=True, help="Switch all fast paths on again, and check nothing.")
def doctor(model: str, dtype: str, reset: bool) -> None:
    """Check packages, devices, memory and MODEL (the embedded one), and that fast paths compute what plain ones do.

    A fast path that fails is switched off on this machine, by name, until it passes here or is --reset. The exit
    status is 1 when something FAILED.
    """
    click.echo("looking at this machine; a minute or two for a small model")
    from c3po_utils.engine import fast_paths, names

    if reset:
        click.echo("all fast paths are on again" if fast_paths.reset() else "no fast path was off")
        return
    import torch

    from c3po_utils.runs import doctor as checks

    bad = 0
    with told():
        for finding in checks.examine(model or names.EMBEDDED, getattr(torch, dtype)):
            click.echo(str(finding))
            bad += not finding.ok
    if bad:
        raise click.ClickException(f"{bad} FAILED; what is to be done is said below each")
    click.echo("all is well")

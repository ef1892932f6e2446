"""The `c3po` command: one thin function a subcommand. What a command needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path

import click

from c3po_utils.cli_ask import ask
from c3po_utils.cli_doctor import doctor
from c3po_utils.cli_errors import told
from c3po_utils.cli_export import export
from c3po_utils.cli_feedback import feedback
from c3po_utils.cli_list import list_
from c3po_utils.cli_results import collect, status
from c3po_utils.cli_run import plan, run
from c3po_utils.cli_serve import serve


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def c3po() -> None:
    """Learn from one sentence of feedback without overgeneralizing."""


for command in (run, plan, status, collect, list_, ask, serve, export, feedback, doctor):
    c3po.add_command(command)


@c3po.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--lenient", is_flag=True, help="List what is not understood, and go on without it.")
@click.option("--model", default="", help="Who answered in sampled data: pi_0, a Hugging Face id or a folder.")
@click.option("--max-new-tokens", type=int, default=512, show_default=True, help="Where its answers are cut here.")
@click.option("--source", type=click.Choice(["human", "model", "program"]), help="Of records that state none.")
@click.option("--kind", type=click.Choice(["style", "content"]), help="Of records that state none.")
@click.option(
    "--length-ratio",
    type=click.FloatRange(1, min_open=True),
    default=1.5,
    show_default=True,
    help="From which an answer is longer.",
)
@click.option("--feedback", "sets", type=click.Path(path_type=Path), multiple=True, help="The set that data are of.")
def import_(
    path: Path,
    dest: Path,
    lenient: bool,
    model: str,
    max_new_tokens: int,
    source: str | None,
    kind: str | None,
    length_ratio: float,
    sets: tuple[Path, ...],
) -> None:
    """Import files of the reference implementation into the run's folder DEST, without running them.

    PATH is a feedback module, a folder of sampled data, a config, an evaluation, or a folder of any of these.
    """
    from c3po_utils.feedback import reference as feedback_reference
    from c3po_utils.runs import reference

    with told():
        records = feedback_reference.Given(source or "", kind or "", length_ratio)
        given = reference.Given(records, model, max_new_tokens, sets)
        click.echo(reference.import_tree(path, dest, given, lenient=lenient))

"""The `c3po` command: one thin function a subcommand. What a command needs is imported when it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def c3po() -> None:
    """Learn from one sentence of feedback without overgeneralizing."""


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Errors of the user's files and settings are told on standard error, without a traceback; exit status 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


@c3po.command()
@click.argument("run")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--estimate", is_flag=True, help="Only say what it would take: calls, tokens, USD, of every stage.")
@click.option("--figures-only", is_flag=True, help="Only make tables and figures again, from stored scores.")
def run(run: str, overrides: tuple[str, ...], estimate: bool, figures_only: bool) -> None:
    """Sample, train, evaluate and draw what RUN asks for: a YAML file, or a name in notebooks/params/runs (demo).

    KEY=VALUE is put over the file, VALUE in YAML; `train.epochs=1` changes one key of a group.
    """
    from c3po_utils.runs import check, config, stage

    with told():
        chosen = config.load_config(run, overrides)
        check.check(chosen)
    if estimate:
        from c3po_utils.runs.estimate import estimates

        with told():
            click.echo(estimates(chosen).to_string(na_rep="-", float_format="{:,.2f}".format))
        for missing in check.lacking(chosen):
            click.echo(f"before it can run: {missing}")
        return
    with told():
        if missing := check.lacking(chosen):
            raise ValueError("; ".join(missing))

    from c3po_utils.runs import batch, jobs  # papermill takes a second to import

    figures = jobs.figures_job(chosen, stage.run_folder(chosen.run))
    if figures_only:
        batch.execute(figures)
    else:
        batch.run_notebooks(chosen)
    folder = figures.stages[0].folder
    click.echo((folder / "table2.md").read_text() + "\nfigures:")
    for path in sorted(folder.glob("*.png")):
        click.echo(f"  {stage.shown(path)}")


@c3po.group()
def feedback() -> None:
    """Sets of feedback: check, generate, write."""


@feedback.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
def check(files: tuple[Path, ...]) -> None:
    """Load FILES (all sets in feedback/ when left out): records, metrics on their examples, bundled prompts."""
    from c3po_utils.feedback import records

    with told():
        sets = files or sorted(records.FEEDBACK_FOLDER.glob("*.yaml"))
        found = records.load_feedbacks(*sets)
        bundled = {path.stem for path in (records.FEEDBACK_FOLDER / "prompts").glob("*.json")}
        prompts = sum(len(records.load_prompts(one.id)) for one in found if one.id in bundled)
    tried = sum(len(one.examples.passing) + len(one.examples.failing) for one in found if one.examples)
    click.echo(
        f"{len(found)} feedbacks in {len(sets)} files: {sum(one.metric is not None for one in found)} checkable,"
        f" {tried} examples judged as they say, {prompts} bundled prompts"
    )

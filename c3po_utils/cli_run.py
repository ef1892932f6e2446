"""`c3po run` and `c3po plan`: a run's jobs done, or told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from c3po_utils.cli_errors import told

if TYPE_CHECKING:
    from c3po_utils.runs.config import RunConfig

STAGES = {  # by name on the command line, kinds of jobs
    "sample": ("sample",),
    "train": ("train",),
    "evaluate": ("evaluate", "two_feedbacks", "compare"),
    "figures": ("figures",),
}


ALONE = {"--estimate": "runs nothing", "--figures-only": "draws what is done"}  # options beside which no other counts


def of_run(command: Callable[..., Any]) -> Callable[..., Any]:
    """RUN, KEY=VALUE, --sweep and --sweep-file, which all commands about a run have."""
    command = click.option(
        "--sweep-file", type=click.Path(path_type=Path), metavar="FILE", help="Settings that go together: YAML or CSV."
    )(command)
    command = click.option(
        "--sweep", multiple=True, metavar="KEY=V,V", help="Values to try, such as lora.r=16,64; again: a grid."
    )(command)
    command = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(command)
    return click.argument("run")(command)


def runs_of(run: str, overrides: tuple[str, ...], sweep: tuple[str, ...], sweep_file: Path | None) -> list[RunConfig]:
    """The runs that are meant: one, or one for each value of a setting of sampling that is swept."""
    from c3po_utils.runs import config, sweeps

    return config.load_runs(run, overrides, sweeps.read_options(sweep, sweep_file))


def _stages(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    """The kinds of jobs in `sample,train`."""
    from c3po_utils.runs import nearest

    names = [name.strip() for name in value.split(",")] if value else list(STAGES)
    for name in names:
        if name not in STAGES:
            raise click.BadParameter(f"unknown stage {name!r} ({nearest(name, STAGES)})")
    return tuple(kind for name in names for kind in STAGES[name])


def _refuse_together(**given: bool) -> None:
    """Refuse an option of `c3po run` that would be passed over beside another one."""
    names = [f"--{name.replace('_', '-')}" for name, is_given in given.items() if is_given]
    for name in ALONE:
        if name in names and len(names) > 1:
            others = ", ".join(other for other in names if other != name)
            raise click.UsageError(f"{name} {ALONE[name]}: expected it without {others}")


_only = click.option(
    "--stages", "kinds", default="", callback=_stages, metavar="A,B", help=f"Only these of {','.join(STAGES)}."
)


@click.command()
@of_run
@_only
@click.option("--estimate", is_flag=True, help="Only say what it would take: calls, tokens, USD, of every stage.")
@click.option("--figures-only", is_flag=True, help="Only make tables and figures again, from stored scores.")
@click.option("--take-over", is_flag=True, help="Drive it though another driver, which is gone or stops now, has it.")
def run(
    run: str,
    overrides: tuple[str, ...],
    sweep: tuple[str, ...],
    sweep_file: Path | None,
    kinds: tuple[str, ...],
    estimate: bool,
    figures_only: bool,
    take_over: bool,
) -> None:
    """Sample, train, evaluate and draw what RUN asks for: a YAML file, or a name in notebooks/params/runs (demo).

    KEY=VALUE is put over the file, VALUE in YAML; `train.epochs=1` changes one key of a group. What can be said so:
    which feedbacks (feedback_set, feedbacks, select.category=travel, select.content_prefix=..., second_feedback), where
    results go (run=results/mine), by which executor. A swept setting of training makes variants of every method, one of
    sampling runs of their own.
    """
    from c3po_utils.runs import check

    only = click.get_current_context().get_parameter_source("kinds") is not ParameterSource.DEFAULT
    _refuse_together(estimate=estimate, figures_only=figures_only, take_over=take_over, stages=only)
    without_keys = estimate or figures_only or kinds == STAGES["figures"]
    with told():  # before papermill is imported, which takes a second
        chosen = runs_of(run, overrides, sweep, sweep_file)
        for one in chosen:
            (check.check if without_keys else check.refuse)(one)
    failed = []
    for one in chosen:
        if len(chosen) > 1:
            click.echo(f"{one.run}:")
        if estimate:
            _estimate(one)
        elif figures_only:
            _draw(one)
        elif error := _run(one, kinds, take_over):
            failed.append(f"{one.run}: {error}" if len(chosen) > 1 else error)
    if failed:
        raise click.ClickException("\n".join(failed))


def _estimate(config: RunConfig) -> None:
    from c3po_utils.runs import check
    from c3po_utils.runs.estimate import estimates

    with told():
        click.echo(estimates(config).to_string(na_rep="-", float_format="{:,.2f}".format))
    for missing in check.lacking(config):
        click.echo(f"before it can run: {missing}")


def _draw(config: RunConfig) -> None:
    """Tables and figures anew, also where they are done."""
    from c3po_utils.batch import notebook
    from c3po_utils.runs import jobs, shown

    with told():
        figures = jobs.figures_job(config)
        try:
            notebook.execute(figures)
        except notebook.PapermillExecutionError as failure:
            raise RuntimeError(f"{shown(figures.output)}: {failure.ename}: {failure.evalue}") from failure
    _show_figures(figures.stages[0].folder)


def _run(config: RunConfig, kinds: tuple[str, ...], take_over: bool) -> str:
    """Which of its jobs failed, or nothing: other runs of a sweep need not wait for them."""
    from c3po_utils.batch import driver, graph

    with told():
        nodes = graph.graph(config, kinds)
        try:
            driver.run_checked(config, nodes, take_over)
        except driver.RunFailed as failure:
            return str(failure)
    if "figures" in nodes:
        _show_figures(nodes["figures"].folders[0])
    return ""


def _show_figures(folder: Path) -> None:
    from c3po_utils.runs import shown

    click.echo((folder / "table2.md").read_text() + "\nfigures:")
    for path in sorted(folder.glob("*.png")):
        click.echo(f"  {shown(path)}")


@click.command()
@of_run
@_only
@click.option(
    "--tokens-per-s", type=(float, float), metavar="TRAINED ANSWERED", help="Of your machine, where no job is done yet."
)
def plan(
    run: str,
    overrides: tuple[str, ...],
    sweep: tuple[str, ...],
    sweep_file: Path | None,
    kinds: tuple[str, ...],
    tokens_per_s: tuple[float, float] | None,
) -> None:
    """Say what RUN has to do: its jobs, which are done, and the time, tokens and cost still to come, at most.

    Nothing is asked, nothing is written; of a model that writes prompts every answer is taken to be usable. RUN and
    KEY=VALUE as for `c3po run`. Time is that of finished jobs of the same kind, else by a rule, which is told.
    """
    from c3po_utils.batch import graph, plans
    from c3po_utils.runs import check

    with told():
        chosen = runs_of(run, overrides, sweep, sweep_file)
        for one in chosen:
            check.check(one)
            nodes = graph.graph(one, kinds)
            click.echo(plans.told(one, nodes, tokens_per_s))
    for missing in dict.fromkeys(reason for one in chosen for reason in check.lacking(one)):
        click.echo(f"before it can run: {missing}")

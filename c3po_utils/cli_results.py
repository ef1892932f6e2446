"""`c3po status` and `c3po collect`: where a run is, and results of several in one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from c3po_utils.cli_errors import called, told
from c3po_utils.cli_run import of_run, runs_of

MOST = 20  # lines of each state


@click.command()
@of_run
@click.option("--all", "everything", is_flag=True, help=f"Every job, not the first {MOST} of each state.")
@click.option("--json", "as_json", is_flag=True, help="All of it, as JSON.")
def status(
    run: str,
    overrides: tuple[str, ...],
    sweep: tuple[str, ...],
    sweep_file: Path | None,
    everything: bool,
    as_json: bool,
) -> None:
    """Say where RUN is: what is done, what runs and how far it is, what failed and why, what waits and for what.

    RUN and KEY=VALUE as they were given to `c3po run`.
    """
    from c3po_utils.batch import graph, states
    from c3po_utils.runs import check

    with told():
        for one in runs_of(run, overrides, sweep, sweep_file):
            check.check(one)
            found = states.states(one, graph.graph(one))
            if as_json:
                click.echo(json.dumps({"run": one.run, **dataclasses.asdict(found)}, indent=2, ensure_ascii=False))
            else:
                click.echo(states.told(one, found, None if everything else MOST))


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.argument("dest")
@click.option("--side-by-side", is_flag=True, help="Each run in a folder of its own in DEST, whatever they have.")
def collect(sources: tuple[str, ...], dest: str, side_by_side: bool) -> None:
    """Bring finished stages of runs (folders, names in results/, URLs such as s3://bucket/run) into the run DEST.

    Stages of one name that differ are refused, by name. Files are checked against their manifests. Unfinished stages
    are left out, and nothing in DEST is overwritten.
    """
    from c3po_utils.batch import collect as collecting
    from c3po_utils.runs import parameters, run_folder, shown

    with told():
        done = collecting.collect(sources, run_folder(dest), side_by_side)
    for folder, what in done.items():
        click.echo(f"{shown(folder)}: {what}")
    given = {"run": dest, "figures": {"runs": [*map(shown, done)], "output": f"{dest}/figures"}}
    click.echo(f"figures: {called()} run RUN {parameters.written_overrides(given)} --figures-only")

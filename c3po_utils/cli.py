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


@c3po.group()
def feedback() -> None:
    """Sets of feedback: check, generate, write."""


@feedback.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
def check(files: tuple[Path, ...]) -> None:
    """Load FILES (all sets in feedback/ when left out): records, metrics on their examples, bundled prompts."""
    from c3po_utils.feedback import checking, records

    sets = files or sorted(records.FEEDBACK_FOLDER.glob("*.yaml"))
    found = checking.check_sets(*sets, all_prompts=not files)
    for warning in found.warnings:
        click.echo(f"Warning: {warning}", err=True)
    with told():
        found.raise_problems()
    examples = [one.examples for one in found.feedbacks if one.examples]
    click.echo(
        f"{len(found.feedbacks)} feedbacks in {len(sets)} files:"
        f" {sum(one.metric is not None for one in found.feedbacks)} checkable,"
        f" {sum(len(one.passing) + len(one.failing) for one in examples)} examples judged as they say,"
        f" {len(found.prompts)} bundled prompts"
    )

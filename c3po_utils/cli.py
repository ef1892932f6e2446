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

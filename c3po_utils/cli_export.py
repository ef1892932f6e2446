"""`c3po export`: rows, adapters, merged models and scores of a run, for other programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from c3po_utils.cli_errors import told

SPLITS = ("in_scope", "near_scope", "out_of_scope")


@click.group()
def export() -> None:
    """Rows, adapters, models and scores of a run, in formats that other programs read.

    RUN is a run's folder, or its name in results/. Nothing that is there is replaced without --force.
    """


def _arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """RUN, OUT and --force, which all have."""
    command = click.option("--force", is_flag=True, help="Replace an earlier export.")(command)
    command = click.argument("out", type=click.Path(path_type=Path))(command)
    return click.argument("run")(command)


_several_feedbacks = click.option("-f", "--feedback", "feedbacks", multiple=True, help="An id; again for more.  [all]")
_one_feedback = click.option("-f", "--feedback", help="Its id, or a+b; not needed where there is only one.")
_one_method = click.option("-m", "--method", help="Such as c3po, c3po@beta=0.03; not needed where there is only one.")


@export.command()
@_arguments
@_several_feedbacks
@click.option("--fold", type=click.Choice(["train", "test", "all"]), default="train", show_default=True)
@click.option("--split", "splits", multiple=True, type=click.Choice(SPLITS), help="Of prompts; again for more.  [all]")
@click.option("--format", "form", type=click.Choice(["jsonl", "dataset"]), default="jsonl", show_default=True)
def rows(
    run: str, out: Path, feedbacks: tuple[str, ...], fold: str, splits: tuple[str, ...], form: Any, force: bool
) -> None:
    """Preference pairs and completions for trl, to the folder OUT: JSON Lines, or datasets on disk."""
    from c3po_utils.runs import exports
    from c3po_utils.sampling import export as sampled

    with told():
        folds = sampled.FOLDS if fold == "all" else (fold,)
        counts = sampled.export_rows(exports.find_run(run), out, feedbacks, folds, splits or SPLITS, form, force)
    click.echo(f"{out}: {sampled.report(counts)}")


@export.command()
@_arguments
@_one_feedback
@_one_method
def adapter(run: str, out: Path, feedback: str | None, method: str | None, force: bool) -> None:
    """A LoRA adapter to the folder OUT, as peft loads it, with a model card."""
    from c3po_utils.figures.export import card_scores
    from c3po_utils.runs import exports
    from c3po_utils.training import export as trained

    with told():
        found = trained.Trained.find(exports.find_run(run), feedback, method)
        scores = card_scores(found.run, found.feedback_id, found.method)
        click.echo(trained.export_adapter(found, out, scores, force))


@export.command()
@_arguments
@_one_feedback
@_one_method
@click.option("--gguf", type=click.Path(path_type=Path), help="A file for llama.cpp, besides.")
@click.option("--quantize", type=click.Choice(["bf16", "f16", "q8_0"]), default="bf16", show_default=True,
              help="How its weights are stored.")  # fmt: skip
def merged(
    run: str, out: Path, feedback: str | None, method: str | None, gguf: Path | None, quantize: str, force: bool
) -> None:
    """The base model with an adapter merged into it to the folder OUT: safetensors, tokenizer, model card."""
    from c3po_utils.figures.export import card_scores
    from c3po_utils.runs import exports
    from c3po_utils.training import export as trained

    with told():
        found = trained.Trained.find(exports.find_run(run), feedback, method)
        scores = card_scores(found.run, found.feedback_id, found.method)
        click.echo(trained.export_merged(found, out, gguf=gguf, kind=quantize, scores=scores, force=force))
    if gguf:
        click.echo(gguf)


@export.command()
@_arguments
@_several_feedbacks
@click.option("-m", "--method", "methods", multiple=True, help="Such as c3po; again for more.  [all]")
@click.option("--by-method", "by", flag_value="method", help="Means over feedbacks with 95% bounds instead,")
@click.option("--by-feedback", "by", flag_value="feedback", help="or a row for each feedback and method.")
@click.option("--texts", is_flag=True, help="Prompts and answers, too.")
def scores(
    run: str, out: Path, feedbacks: tuple[str, ...], methods: tuple[str, ...], by: Any, texts: bool, force: bool
) -> None:
    """Every answer's score to OUT, a tidy CSV."""
    from c3po_utils.figures.export import export_scores
    from c3po_utils.runs import exports

    with told():
        count = export_scores(exports.find_run(run), out, feedbacks, methods, by or "answer", texts, force)
    click.echo(f"{out}: {count:,} rows")

"""`c3po feedback`: sets of feedback."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from c3po_utils.cli_errors import called, told


@click.group()
def feedback() -> None:
    """Sets of feedback: check, generate, write."""


@feedback.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
def check(files: tuple[Path, ...]) -> None:
    """Load FILES (all sets in feedback/ when left out): records, metrics on their examples, bundled prompts."""
    from c3po_utils.feedback import checking, records

    sets = files or records.all_sets()
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


@feedback.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("limits", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--programmatic", type=click.IntRange(1), metavar="N", help="Draw N checkable ones from the grammar.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draw, or of a model's answers."
)
@click.option("--style", type=click.IntRange(1), metavar="N", help="Let a model propose N about style,")
@click.option("--content", type=click.IntRange(1), metavar="N", help="or N about content.")
@click.option("--model", help="openai:MODEL[@BASE_URL], or a local model.")
@click.option("--ledger", type=click.Path(path_type=Path), help="Where answers are kept  [results/feedback.sqlite]")
@click.option("--allow-short", is_flag=True, help="Write fewer when no more can be had.")
@click.option("--estimate", is_flag=True, help="Only say what the model would be asked: calls, tokens, USD.")
def generate(
    file: Path,
    limits: tuple[str, ...],
    programmatic: int | None,
    seed: int,
    style: int | None,
    content: int | None,
    model: str | None,
    ledger: Path | None,
    allow_short: bool,
    estimate: bool,
) -> None:
    """Write new feedback to FILE: drawn from a grammar, or proposed by a model, unlike any in feedback/.

    KEY=VALUE limits the model's calls, such as budget_usd=1 or requests_per_minute=60.
    """
    from c3po_utils.feedback import writing

    wanted = {key: n for key, n in (("programmatic", programmatic), ("style", style), ("content", content)) if n}
    if len(wanted) != 1:
        raise click.UsageError("expected one of --programmatic N, --style N and --content N")
    kind, count = wanted.popitem()
    asking = {"--model": model, "--ledger": ledger, "--allow-short": allow_short, "--estimate": estimate}
    if kind == "programmatic" and (given := [*(name for name, value in asking.items() if value), *limits]):
        raise click.UsageError(f"--programmatic asks no model: expected it without {', '.join(given)}")
    with told():
        if file.exists() and not estimate:  # before a model is paid
            raise FileExistsError(f"{file} is there already: expected the name of a new file")
        if kind == "programmatic":
            from c3po_utils.feedback.programmatic import generate as draw
            from c3po_utils.sampling.new_feedback import taken_ids

            made, report = draw(count, seed), f"{count} drawn with seed {seed}"
            taken = taken_ids()
            if clash := [one.id for one in made if one.id in taken]:
                raise ValueError(
                    f"{file}: expected new ids, found {clash[0]!r} in a set in feedback/ already: another --seed has"
                    " others"
                )
        else:
            if not model:
                raise click.UsageError(f"--{kind} needs --model")
            found = _proposed(kind, count, model, ledger, limits, seed, allow_short, estimate)
            if estimate:
                click.echo(f"if every answer can be used: {found}")
                return
            made, report = found
        click.echo(report)
        click.echo(writing.write_feedbacks(file, made))


def _proposed(
    kind: str,
    count: int,
    model: str,
    ledger: Path | None,
    limits: tuple[str, ...],
    seed: int,
    allow_short: bool,
    estimate: bool,
) -> Any:
    from c3po_utils.chat import ledger_file
    from c3po_utils.feedback import records
    from c3po_utils.sampling import generate_feedback

    effort = replace(generate_feedback.EFFORT, seed=seed)  # another seed has other answers
    given = {"known": records.load_feedbacks(*records.all_sets()), "effort": effort}
    if estimate:
        with ledger_file.only_reading():
            return generate_feedback.estimate(_open(model, ledger, limits), kind, count, **given)
    asked = _open(model, ledger, limits)
    return generate_feedback.generate_feedbacks(asked, kind, count, **given, allow_short=allow_short, progress=True)


@feedback.command()
@click.argument("sentence")
@click.argument("limits", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--set", "file", type=click.Path(path_type=Path), help="Where it goes  [feedback/mine.yaml]")
@click.option("--id", "id_", default="", help="Its id; else made of the sentence's words.")
@click.option("--model", help="A strong model that proposes the record and writes prompts; else you are asked.")
@click.option(
    "--categories", type=click.IntRange(2), default=10, show_default=True, help="Of prompts, where a model writes them."
)
@click.option(
    "--per-category", type=click.IntRange(1), default=6, show_default=True, help="Prompts of each kind in each."
)
@click.option("--allow-short", is_flag=True, help="Keep fewer prompts when the model runs out of new ones.")
@click.option("--yes", is_flag=True, help="Take every default and proposal without asking.")
def new(
    sentence: str,
    limits: tuple[str, ...],
    file: Path | None,
    id_: str,
    model: str | None,
    categories: int,
    per_category: int,
    allow_short: bool,
    yes: bool,
) -> None:
    """Make a record of SENTENCE: its domain and effect, a metric, demonstrations and prompts.

    It is shown, and written when you agree. KEY=VALUE limits the model's calls, such as budget_usd=1. Where its prompts
    were not to be had, the same command again goes on with them.
    """
    from c3po_utils.feedback import records, writing
    from c3po_utils.runs import shown
    from c3po_utils.sampling import new_feedback

    _check_new(limits, model)
    path = file or records.FEEDBACK_FOLDER / "mine.yaml"
    if yes and not model and not new_feedback.split_sentence(sentence)[0]:
        raise click.UsageError(
            f"--yes expects a sentence that says what it applies to, such as 'When I ask for a poem, ...'; found"
            f" {sentence!r}: leave --yes out, or name a --model"
        )
    with told():
        chat_model = _open(model, None, limits) if model else None
        made = new_feedback.without_prompts(path, sentence, id_) if chat_model else None
        if made:
            click.echo(f"{shown(path)} has it as {made.id}, without prompts\n\n{writing.as_yaml(made)}")
        else:
            made = _made(sentence, path, id_, chat_model, yes)
            click.echo(f"\n{writing.as_yaml(made)}")
            if not yes and not click.confirm(f"Write it to {shown(path)}?", default=True):
                return
            writing.append(path, made)
        amount = {"categories": categories, "per_category": per_category}
        prompts = bool(chat_model) and _prompts(chat_model, made, path.parent / "prompts", amount, allow_short, yes)
    click.echo(new_feedback.next_command(path, made, prompts, called()))


def _check_new(limits: tuple[str, ...], model: str | None) -> None:
    """What a shell makes of a sentence without quotes is refused, and what says how a model is asked where none is."""
    if words := [word for word in limits if "=" not in word]:
        raise click.UsageError(
            f"expected the whole sentence in quotes, then KEY=VALUE; found {' '.join(words)!r} after it"
        )
    source = click.get_current_context().get_parameter_source
    options = {"categories": "--categories", "per_category": "--per-category", "allow_short": "--allow-short"}
    given = [option for name, option in options.items() if source(name) != click.core.ParameterSource.DEFAULT]
    if not model and (given := [*limits, *given]):
        raise click.UsageError(f"{given[0]} is for prompts that a model writes: name one with --model")


def _made(sentence: str, path: Path, id_: str, chat_model: Any, yes: bool) -> Any:
    from c3po_utils.sampling import new_feedback

    taken = new_feedback.taken_ids(path)
    if id_:
        new_feedback.check_id(id_, taken)
    if chat_model:
        made, left_out = new_feedback.propose(chat_model, sentence, id_, taken)
        for what in left_out:
            click.echo(f"left out: {what}")
        return made
    ask = (lambda question, default: default) if yes else partial(click.prompt, show_default=True)
    return new_feedback.questionnaire(sentence, ask, click.echo, id_, taken)


def _prompts(model: Any, feedback: Any, folder: Path, amount: dict[str, int], allow_short: bool, yes: bool) -> bool:
    from c3po_utils.sampling import generate_prompts, rows

    click.echo(f"prompts, if every answer can be used: {generate_prompts.estimate(feedback, model, **amount)}")
    if not yes and not click.confirm("Let the model write them?", default=True):
        return False
    prompt_set, report = generate_prompts.generate_prompts(
        feedback, model, **amount, allow_short=allow_short, progress=True
    )
    rows.with_prompts_in_scope(prompt_set.prompts, feedback.id)
    click.echo(f"{report}\n{generate_prompts.write_prompts(folder, prompt_set)}")
    return True


def _open(model: str, ledger: Path | None, limits: tuple[str, ...]) -> Any:
    from c3po_utils import chat
    from c3po_utils.runs import parameters, run_folder

    return chat.open_chat(model, ledger or run_folder("results/feedback.sqlite"), **parameters.read_overrides(limits))

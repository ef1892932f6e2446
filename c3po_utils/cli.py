"""The `c3po` command: one thin function a subcommand. What a command needs is imported when it runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def c3po() -> None:
    """Learn from one sentence of feedback without overgeneralizing."""


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Errors of the user's files, settings and budget are told on standard error, without a traceback; status 1."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
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


@c3po.command()
@click.argument("run")
@click.argument("prompt", required=False)
@click.option("--feedback", "feedback_id", default="", help="Which of the run's  [its only one]")
@click.option("--methods", default="", help="Comma between: in_context, c3po, OTHER_FEEDBACK/c3po  [up to 3 adapters]")
@click.option("--mix", "mixes", multiple=True, metavar="A=W,B=W", help="Adapters added with weights; may be repeated.")
@click.option("--test", "tests", type=click.IntRange(1), metavar="N", help="Ask the run's first N test prompts.")
@click.option("--seed", type=int, help="Of the answers  [the run's]")
def ask(
    run: str,
    prompt: str | None,
    feedback_id: str,
    methods: str,
    mixes: tuple[str, ...],
    tests: int | None,
    seed: int | None,
) -> None:
    """Ask the models of RUN (results/demo, or demo) side by side: base, in context, adapters, and mixtures of them.

    Each answer comes as it is written, then whether it passes the feedback's metric. Without PROMPT, prompts are read
    line by line; an empty line stands for the run's next test prompt. Nothing is recorded in the run.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers draws one among the answers
    from c3po_utils.evaluation import playground

    with told():
        named = [name.strip() for name in methods.split(",") if name.strip()]
        play = playground.open_playground(run, feedback_id, named, [playground.read_mix(mix) for mix in mixes])
        click.echo(play.heading)
        given = [row["prompt"] for row in play.test_prompts[:tests]] if tests else [prompt] if prompt else _typed(play)
        for one in given:
            click.echo(f"\n> {one}" + (f"  ({split})" if (split := play.row(one).get("split")) else ""))
            writer = playground.Typewriter(partial(click.echo, nl=False))
            for answer in play.answers(one, seed=seed, follow=writer.follow):
                writer.end(answer)


def _typed(play: Any) -> Iterator[str]:
    """Prompts as they are typed, until the input ends."""
    from c3po_utils.evaluation import playground

    playground.shared_chat(play.settings.model)  # loaded before the first question, not after it
    tests = iter(play.test_prompts)
    click.echo("Type a prompt; Enter alone takes a test prompt, Ctrl-D ends.")
    with contextlib.suppress(click.Abort):
        while True:
            typed = click.prompt("\nprompt", default="", show_default=False)
            if one := typed or next(tests, {}).get("prompt"):
                yield one


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


@feedback.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("limits", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--programmatic", type=int, metavar="N", help="Draw N checkable constraints from the grammar.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draw.")
@click.option("--style", type=int, metavar="N", help="Let a model propose N about style,")
@click.option("--content", type=int, metavar="N", help="or N about content.")
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
    from c3po_utils.feedback import records

    wanted = {key: n for key, n in (("programmatic", programmatic), ("style", style), ("content", content)) if n}
    if len(wanted) != 1:
        raise click.UsageError("expected one of --programmatic N, --style N and --content N")
    kind, count = wanted.popitem()
    with told():
        if file.exists() and not estimate:  # before a model is paid
            raise FileExistsError(f"{file} is there already: expected the name of a new file")
        if kind == "programmatic":
            from c3po_utils.feedback.programmatic import generate as draw

            made, report = draw(count, seed), f"{count} drawn with seed {seed}"
        else:
            if not model:
                raise click.UsageError(f"--{kind} needs --model")
            found = _proposed(kind, count, model, ledger, limits, allow_short, estimate)
            if estimate:
                click.echo(found)
                return
            made, report = found
        click.echo(f"{report}\n{records.write_feedbacks(file, made)}")


def _proposed(
    kind: str, count: int, model: str, ledger: Path | None, limits: tuple[str, ...], allow_short: bool, estimate: bool
) -> Any:
    from c3po_utils.feedback import records
    from c3po_utils.sampling import generate_feedback

    known = records.load_feedbacks(*sorted(records.FEEDBACK_FOLDER.glob("*.yaml")))
    asked = _open(model, ledger, limits)
    if estimate:
        return generate_feedback.estimate(asked, kind, count, known=known)
    return generate_feedback.generate_feedbacks(asked, kind, count, known=known, allow_short=allow_short, progress=True)


@feedback.command()
@click.argument("sentence")
@click.argument("limits", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--set", "file", type=click.Path(path_type=Path), help="Where it goes  [feedback/mine.yaml]")
@click.option("--id", "id_", default="", help="Its id; else made of the sentence's words.")
@click.option("--model", help="A strong model that proposes the record and writes prompts; else you are asked.")
@click.option("--categories", type=int, default=10, show_default=True, help="Of prompts, where a model writes them.")
@click.option("--per-category", type=int, default=6, show_default=True, help="Prompts of each kind in each.")
@click.option("--yes", is_flag=True, help="Take every default and proposal without asking.")
def new(
    sentence: str,
    limits: tuple[str, ...],
    file: Path | None,
    id_: str,
    model: str | None,
    categories: int,
    per_category: int,
    yes: bool,
) -> None:
    """Make a record of SENTENCE: its domain and effect, a metric, demonstrations and prompts.

    It is shown, and written when you agree. KEY=VALUE limits the model's calls, such as budget_usd=1.
    """
    from c3po_utils.feedback import records
    from c3po_utils.runs import shown
    from c3po_utils.sampling import new_feedback

    path = file or records.FEEDBACK_FOLDER / "mine.yaml"
    with told():
        chat_model = _open(model, None, limits) if model else None
        if chat_model:
            made, left_out = new_feedback.propose(chat_model, sentence)
            made = made.model_copy(update={"id": id_}) if id_ else made
            for what in left_out:
                click.echo(f"left out: {what}")
        else:
            ask = (lambda question, default: default) if yes else partial(click.prompt, show_default=True)
            made = new_feedback.questionnaire(sentence, ask, click.echo, id_)
        click.echo(f"\n{new_feedback.as_yaml(made)}")
        if not yes and not click.confirm(f"Write it to {shown(path)}?", default=True):
            return
        new_feedback.append(path, made)
        amount = {"categories": categories, "per_category": per_category}
        prompts = bool(chat_model) and _prompts(chat_model, made, path.parent / "prompts", amount, yes)
    click.echo(new_feedback.next_command(path, made, prompts))


def _prompts(model: Any, feedback: Any, folder: Path, amount: dict[str, int], yes: bool) -> bool:
    from c3po_utils.sampling import generate_prompts

    click.echo(f"prompts: {generate_prompts.estimate(feedback, model, **amount)}")
    if not yes and not click.confirm("Let the model write them?", default=True):
        return False
    prompt_set, report = generate_prompts.generate_prompts(feedback, model, **amount, progress=True)
    click.echo(f"{report}\n{generate_prompts.write_prompts(folder, prompt_set)}")
    return True


def _open(model: str, ledger: Path | None, limits: tuple[str, ...]) -> Any:
    from c3po_utils import chat
    from c3po_utils.runs import parameters, run_folder

    return chat.open_chat(model, ledger or run_folder("results/feedback.sqlite"), **parameters.read_overrides(limits))

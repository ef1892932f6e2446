"""`c3po ask`: talk to the models of a run, side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import click

from c3po_utils.cli_errors import told


@click.command()
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
    from c3po_utils.engine import models
    from c3po_utils.evaluation import playground
    from c3po_utils.training.methods import split_names

    if prompt and tests:
        raise click.UsageError("expected PROMPT or --test, found both")
    with told(), models.without_bars():  # of models that are loaded between the answers
        named = split_names(methods)
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

"""A panel to talk to runs in a notebook: choose, type, and read answers side by side as they are written."""

from __future__ import annotations

from collections.abc import Mapping

from ipywidgets import HTML, Button, Dropdown, HBox, IntText, Layout, SelectMultiple, Text, Textarea, VBox

from c3po_utils.evaluation import playground
from c3po_utils.figures import cards

WIDE, LABEL = Layout(width="98%"), {"description_width": "90px"}
ERRORS = (ValueError, OSError, RuntimeError, MemoryError)  # a person's choices, told in the panel


class Panel:
    """Widgets, and what they do when they are used; `view` is what a notebook shows.

    A run's choice fills the feedbacks, a feedback's the methods and test prompts, a test prompt's the prompt.
    """

    def __init__(self, play: playground.Playground, mix: Mapping[str, float] | None = None):
        runs = {name: name for name in playground.known_runs()} | {play.run.name: str(play.run)}
        self.run = Dropdown(options=list(runs.items()), value=str(play.run), description="run", style=LABEL)
        self.feedback = Dropdown(description="feedback", style=LABEL)
        self.methods = SelectMultiple(description="methods", rows=6, style=LABEL, layout=Layout(width="auto"))
        mixed = ", ".join(f"{name}={weight:g}" for name, weight in (mix or {}).items())
        self.mix = Text(mixed, description="mix", placeholder="c3po=0.5, scd=0.5", style=LABEL, layout=WIDE)
        self.test_prompt = Dropdown(description="test prompt", style=LABEL, layout=WIDE)
        self.prompt = Textarea(description="prompt", placeholder="Type a prompt", style=LABEL, layout=WIDE)
        self.seed = IntText(0, description="seed", style=LABEL, layout=Layout(width="180px"))
        self.button = Button(description="Ask", button_style="primary", icon="comments")
        self.heading, self.answers, self.status = HTML(), HTML(), HTML()
        self._connect()
        self._choose_run(play.record.id)
        self.methods.value = [name for name in self.methods.options if name in play.methods]
        self.view = VBox([
            HBox([VBox([self.run, self.feedback, self.seed]), self.methods]), self.mix, self.heading, self.test_prompt,
            self.prompt, HBox([self.button, self.status]), self.answers,
        ])  # fmt: skip

    def _connect(self) -> None:
        self.run.observe(lambda _: self._choose_run(), "value")
        self.feedback.observe(lambda _: self._choose_feedback(), "value")
        self.test_prompt.observe(lambda change: self._take(change["new"]), "value")
        self.button.on_click(lambda _: self.ask())

    def _choose_run(self, feedback: str = "") -> None:
        known = playground.sampled_feedbacks(self.run.value)
        self.feedback.options = known
        self.feedback.value = feedback if feedback in known else known[0]
        self._choose_feedback()  # another run's, though it may have the same name

    def _choose_feedback(self) -> None:
        if not self.feedback.value:  # for a moment, while the options change
            return
        play = playground.open_playground(self.run.value, self.feedback.value)
        adapters = playground.trained_adapters(play.run, play.record.id)
        self.methods.options = [playground.IN_CONTEXT, *adapters]
        self.methods.value = [name for name in play.methods if name != playground.BASE]
        prompts = [(f"{row['split'].replace('_', ' ')}: {row['prompt']}", row["prompt"]) for row in play.test_prompts]
        self.test_prompt.options = [("(or type one below)", ""), *prompts]
        self.test_prompt.index = 0
        self.seed.value = play.settings.seed
        self.heading.value = cards.heading(play)

    def _take(self, prompt: str) -> None:
        self.prompt.value = prompt or self.prompt.value

    def ask(self) -> None:
        """What the button does: every method's answer, as it is written, in a card of its own."""
        self.button.disabled, self.status.value = True, "…"
        try:
            self._answer(self.prompt.value.strip())
            self.status.value = ""
        except ERRORS as error:
            self.status.value = cards.problem(error)
        finally:
            self.button.disabled = False

    def _answer(self, prompt: str) -> None:
        if not prompt:
            raise ValueError("type a prompt, or choose a test prompt")
        mix = playground.read_mix(self.mix.value)
        play = playground.open_playground(
            self.run.value, self.feedback.value, [playground.BASE, *self.methods.value], [mix] if mix else []
        )
        texts, done = dict.fromkeys(play.methods, ""), {}
        self.answers.value = cards.CSS + cards.cards(texts, done)

        def show(method: str, text: str) -> None:
            texts[method] = text
            self.answers.value = cards.CSS + cards.cards(texts, done)

        for answer in play.answers(prompt, seed=self.seed.value, follow=show):
            done[answer.method] = answer
            show(answer.method, answer.outcome.text)

"""Chat templates without system messages: what is sampled is what is trained on and what is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from c3po_utils.chat.local import LocalChat
from c3po_utils.chat.types import Sampling, request
from c3po_utils.engine import load_model, load_tokenizer
from c3po_utils.engine.templates import render
from c3po_utils.evaluation import implicit_reward, open_evaluation
from c3po_utils.feedback import find_feedback
from c3po_utils.sampling import SampleSettings, load_rows, open_sample
from c3po_utils.training import Training, TrainSettings
from tests.tiny import TEMPLATE
from tests.training.test_data import DROPS_SYSTEM, MISTRAL

RAISES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
LAST_TURN = (  # as Mistral's later ones: the system message goes into the last user turn, if that is the last of all
    "{% for m in messages %}{% if m['role'] == 'user' %}<|start|>user\n"
    "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n{% endif %}"
    "{{ m['content'] }}<|end|>\n{% elif m['role'] == 'assistant' %}<|start|>assistant\n{{ m['content'] }}<|end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
TEMPLATES = {"raises": RAISES, "drops": DROPS_SYSTEM, "mistral": MISTRAL, "last_turn": LAST_TURN}
SETTINGS = SampleSettings(
    "", best_of=8, categories=3, prompts_per_category=2, system_prompt="Be kind.", max_new_tokens=6, seed=0
)


@pytest.fixture(params=TEMPLATES)
def model(request, tiny_folder, tmp_path) -> str:
    """The folder of a tiny model with another template."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "chat_template.jinja").write_text(TEMPLATES[request.param])
    return str(folder)


def seen_by(chat: LocalChat) -> list[list[int]]:
    """The prompts, as tokens, that a model is asked from now on."""
    prompts, whole = [], chat.length
    chat.length = lambda rows, sampling: prompts.extend(row.prompt for row in rows) or whole(rows, sampling)
    return prompts


@pytest.mark.parametrize("turns", [[], [("Is tea hot?", "Yes, it is.")]])
def test_a_prompt_is_sampled_as_it_is_trained_on_and_measured(model, turns):
    tokenizer = load_tokenizer(model)
    chat = LocalChat(load_model(model), tokenizer)
    prompts = seen_by(chat)
    (outcome,) = chat.complete([request("a", "Tea?", system="Be kind.", turns=turns)], Sampling(max_new_tokens=4))
    assert outcome.usable
    feedback = find_feedback("boss_signoff")
    shown = [{"prompt": prompt, "answer": answer} for prompt, answer in turns]
    feedback = feedback.model_copy(update={"demonstrations": [type(feedback.demonstrations[0])(**d) for d in shown]})
    told = {"feedback": feedback, "context": "demonstrations"} if turns else {}
    (example,) = implicit_reward.told(tokenizer, [("Tea?", "Yes.")], system="Be kind.", **told)
    assert prompts[0] == example.prompt_ids
    opening = turns[0][0] if turns else "Tea?"
    assert f"Be kind.\n\n{opening}" in tokenizer.decode(prompts[0])


def test_models_without_system_messages_are_sampled_trained_and_evaluated(model, tmp_path, own_feedback):
    run, tokenizer = tmp_path / "run", load_tokenizer(model)
    open_sample(run, own_feedback, replace(SETTINGS, model=model)).fill()
    rows = load_rows(run, "wordy")
    assert {row["baseline_status"] for row in rows} <= {"ok", "truncated"}
    settings = TrainSettings("c3po", 1e-3, 1, 2, 0, {"r": 2}, {"max_dropped_share": 1.0})
    training = Training.of(run, own_feedback, settings)
    training.fit()
    assert all("Be kind.\n\nTea" in tokenizer.decode(row["chosen_prompt_ids"]) for row in training.rows)
    answers = open_evaluation(run, own_feedback).answers(["base_resampled", "in_context", "c3po"])
    assert set(answers["status"]) <= {"ok", "truncated"}
    assert len(answers) == 3 * sum(row["fold"] == "test" for row in rows)


def test_a_conversation_that_the_template_refuses_is_a_failed_outcome(tiny_folder, monkeypatch):
    tokenizer = load_tokenizer(str(tiny_folder))
    monkeypatch.setattr(tokenizer, "chat_template", MISTRAL)
    chat = LocalChat(load_model(str(tiny_folder)), tokenizer)
    odd = replace(request("odd", "Tea?"), messages=({"role": "assistant", "content": "Tea?"},))
    found = {one.id: one for one in chat.complete([odd, request("plain", "Tea?")], Sampling(max_new_tokens=4))}
    assert (found["odd"].status, found["plain"].usable) == ("failed", True)
    assert "refuses the conversation: roles must alternate" in found["odd"].reason


def test_templates_with_system_messages_are_left_as_they_are(tiny_folder):
    tokenizer = load_tokenizer(str(tiny_folder))
    text = render(tokenizer, [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Be kind. Tea?"}])
    assert text.startswith("<|start|>system\nBe kind.<|end|>")

"""The library of feedback: its composition, and prompts of which no test category repeats what is trained on."""

from collections import Counter

import pytest

from c3po_utils.feedback.checking import near_duplicates
from c3po_utils.feedback.metrics import METRICS
from c3po_utils.feedback.records import FEEDBACK_FOLDER, Feedback, feedback_set, load_feedbacks, load_prompts

LIBRARY = load_feedbacks(*map(feedback_set, ("human", "style", "content")))
BUNDLED = sorted(path.stem for path in (FEEDBACK_FOLDER / "prompts").glob("*.json"))


def of(**parts: str) -> list[Feedback]:
    return [one for one in LIBRARY if all(getattr(one, key) == value for key, value in parts.items())]


def test_it_is_composed_as_the_papers():
    """Section 5.1: 50 by people, 25 about style and 25 about content by a model."""
    assert len(LIBRARY) == 100
    assert len(of(source="human")) == 50
    assert len(of(source="model", kind="style")) == len(of(source="model", kind="content")) == 25
    kinds = Counter(one.kind for one in of(source="human"))
    assert min(kinds.values()) >= 20, kinds


def test_enough_are_checkable_shown_and_prompted():
    checkable = [one for one in LIBRARY if one.metric]
    assert len(checkable) >= 40
    assert sum(len(one.demonstrations) >= 2 for one in LIBRARY) >= 40
    assert sum(one.id in BUNDLED for one in checkable) >= 32
    used = {part.name for one in checkable for part in one.metric.parts()}
    assert len(used) >= len(METRICS) / 2, "varied effects"


@pytest.mark.parametrize("feedback", [one for one in LIBRARY if one.metric], ids=lambda one: one.id)
def test_every_metric_is_tried_on_three_passing_and_three_failing_answers(feedback):
    assert len(set(feedback.examples.passing)) >= 3
    assert len(set(feedback.examples.failing)) >= 3


def test_every_feedback_names_its_place_and_says_a_thing_of_its_own():
    assert all(one.scope and one.categories for one in LIBRARY)
    for key in ("content", "domain"):
        assert len({getattr(one, key) for one in LIBRARY}) == 100
    assert len({one.effect for one in LIBRARY}) >= 95, "few share an effect in different domains"


@pytest.mark.parametrize("feedback_id", BUNDLED)
def test_no_category_nearly_repeats_a_prompt_of_another(feedback_id):
    """Whole categories are held out for testing, whichever they are."""
    close = near_duplicates(load_prompts(feedback_id))
    assert close == []


def test_the_readme_counts_it_right():
    text = (FEEDBACK_FOLDER / "README.md").read_text(encoding="utf-8")
    checkable = [one.id for one in LIBRARY if one.metric]
    assert f"{len(checkable)} of its records have a metric" in text
    assert f"and {len(set(checkable) & set(BUNDLED))} of these have bundled prompts" in text

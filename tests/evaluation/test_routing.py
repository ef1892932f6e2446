"""Behind a gate the answers are those of the model that it chose, bit for bit, and the ledger knows whose they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from c3po_utils import chat, engine
from c3po_utils.evaluation import evaluate, routing, side_effects
from c3po_utils.evaluation.evaluate import eval_stage, evaluate_method
from c3po_utils.evaluation.two_feedbacks import TwoFeedbacks, open_gates, two_feedbacks_stage
from c3po_utils.feedback.records import Feedback
from c3po_utils.sampling import answers, load_rows, stored_feedback, stored_settings
from c3po_utils.training import adapter_hash
from tests.stored_run import sampled_for, store_adapter, store_gate, store_sample

METHOD = "scd_gated"


@pytest.fixture(scope="module")
def tiny(tiny_folder) -> str:
    return str(tiny_folder)


@pytest.fixture
def run(tmp_path, tiny):
    """Two sampled feedbacks with adapters of SCD, and no gates yet."""
    for seed, id in enumerate(("short", "shouted")):
        store_sample(tmp_path, id, tiny)
        store_adapter(tmp_path, id, "scd", tiny, seed)
    return tmp_path


def answered(run, method: str, column: str) -> dict[str, str]:
    """The answers of another method's model to the requests that `column` makes, without what is remembered.

    In a copy of the run, as its ledger may still be open here: SQLite's files must not be moved then.
    """
    settings, rows = stored_settings(run, "short"), load_rows(run, "short", "test")
    if method == "pi_0":
        model = chat.open_chat(settings.model, run / "fresh.sqlite")
        answers.add_answers(model, rows, settings, column)
    else:
        with TemporaryDirectory() as folder:
            fresh = Path(folder) / "run"
            shutil.copytree(run, fresh, ignore=shutil.ignore_patterns("*.sqlite*"))
            with evaluate.model_for(fresh, "short", method, settings) as model:
                answers.add_answers(model, rows, settings, column)
    return {row["id"]: row[column] for row in rows}


def scored(run, id: str = "short") -> dict[str, str]:
    return {row["prompt_id"]: row["answer"] for row in evaluate_method(run, stored_feedback(run, id), METHOD)}


def test_a_closed_gate_answers_as_pi_0_and_an_open_one_as_the_adapter(run):
    store_gate(run, "short", lambda row: False)
    closed, first = scored(run), eval_stage(run, "short", METHOD).identity
    pi_0 = answered(run, "pi_0", METHOD)
    assert closed == pi_0
    store_gate(run, "short", lambda row: True)
    assert eval_stage(run, "short", METHOD).identity != first
    opened = scored(run)  # the ledger has an answer to each of these requests: pi_0's
    adapter = answered(run, "scd", METHOD)
    assert opened == adapter
    assert opened != closed


def test_each_prompt_goes_its_way_and_the_model_is_left_as_it_was(run, tiny):
    before = {key: value.clone() for key, value in engine.shared_model(tiny).state_dict().items()}
    inside = {row["id"] for row in load_rows(run, "short") if row["split"] == "in_scope"}
    store_gate(run, "short", lambda row: row["id"] in inside)
    found, pi_0, adapter = scored(run), answered(run, "pi_0", METHOD), answered(run, "scd", METHOD)
    assert {id: text for id, text in found.items() if id in inside} == {id: adapter[id] for id in found if id in inside}
    assert {id: text for id, text in found.items() if id not in inside} == {
        id: pi_0[id] for id in found if id not in inside
    }
    assert any(adapter[id] != pi_0[id] for id in inside & found.keys())
    after = engine.shared_model(tiny).state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_what_cannot_be_read_goes_to_pi_0_which_says_why(run, tiny):
    store_gate(run, "short", lambda row: True)
    with routing.adapted(run, ["short"], METHOD, tiny) as model:
        asked = [chat.request("empty", " "), chat.request("long", "word " * 400), chat.request("good", "What is tea?")]
        assert {key: [one.id for one in own] for key, own in model.routes(asked).items()} == {
            (): ["empty", "long"], ("short",): ["good"],
        }  # fmt: skip
        found = chat.ask(model, asked, chat.Sampling(max_new_tokens=4))
    assert [found[id].status for id in ("empty", "long")] == ["failed", "failed"]
    assert found["empty"].reason == "empty prompt"


def test_another_gate_or_adapter_is_another_evaluation(run, tiny):
    store_gate(run, "short", lambda row: True)
    own = adapter_hash(run / "train" / "short" / METHOD)
    assert eval_stage(run, "short", METHOD).identity["adapter"] == own
    store_gate(run, "short", lambda row: False)
    other = adapter_hash(run / "train" / "short" / METHOD)
    store_adapter(run, "short", "scd", tiny, seed=7)
    assert len({own, other, adapter_hash(run / "train" / "short" / METHOD)}) == 3
    assert adapter_hash(run / "train" / "short" / "scd") not in (own, other)


def test_a_closed_gate_has_the_perplexity_of_pi_0(run):
    found = {}
    for opens in (False, True):
        store_gate(run, "short", lambda row, opens=opens: opens)
        table = side_effects.perplexities(run, "short", ["base_resampled", "scd", METHOD]).set_index("method")
        found[opens] = table["perplexity"]
    assert found[False][METHOD] == found[False]["base_resampled"]
    assert found[True][METHOD] == found[True]["scd"] != found[True]["base_resampled"]


def feedback(id: str) -> Feedback:
    metric = {"name": "words_at_least", "value": 1}
    return Feedback(id=id, content="c", domain="d", effect="e", source="human", kind="style", metric=metric)


def test_each_of_two_feedbacks_has_its_own_gate(run, tiny):
    for id in ("short", "shouted"):
        store_gate(run, id, lambda row, id=id: row["id"].startswith(f"{id}/in_scope") or row["id"] == "general/0")
    with routing.adapted(run, ["short", "shouted"], METHOD, tiny, notes := {}) as model:
        settings = stored_settings(run, "short+shouted")
        rows = [row for id in ("short", "shouted") for row in load_rows(run, id, "test")]
        rows = list({row["id"]: row for row in rows}.values())
        system = settings.system_prompt
        asked = [chat.request(f"{row['id']}#{METHOD}", row["prompt"], system=system) for row in rows]
        routes = {key: {one.id.partition("#")[0] for one in own} for key, own in model.routes(asked).items()}
        assert routes.keys() == {(), ("short",), ("shouted",), ("short", "shouted")}
        assert routes["short",] == {"short/in_scope/price/0", "short/in_scope/price/1"}
        assert routes["short", "shouted"] == {"general/0"}
        found = chat.ask(model, asked, settings.sampling)
    assert notes["difference_from_sum"] < 1e-5
    pi_0 = chat.ask(chat.open_chat(tiny, run / "fresh.sqlite"), asked, settings.sampling)
    assert all(found[f"{id}#{METHOD}"].text == pi_0[f"{id}#{METHOD}"].text for id in routes[()])
    single = answered(run, "scd", METHOD)
    assert all(found[f"{id}#{METHOD}"].text == single[id] for id in routes["short",])
    with routing.adapted(run, ["short", "shouted"], "scd", tiny) as summed:
        both = chat.ask(summed, asked, settings.sampling)
    assert all(found[f"{id}#{METHOD}"].text == both[f"{id}#{METHOD}"].text for id in routes["short", "shouted"])


def test_two_gated_feedbacks_are_evaluated_and_know_their_gates(run):
    for id in ("short", "shouted"):
        store_gate(run, id, lambda row, id=id: row["id"].startswith(f"{id}/in_scope"))
    records = [sampled_for(run, feedback(id)) for id in ("short", "shouted")]
    together = TwoFeedbacks(run, records, METHOD, "add")
    rows = together.answers()
    assert len(rows) == 2 * 2 * 6  # two feedbacks' metrics on the six test prompts of each
    assert two_feedbacks_stage(run, ["short", "shouted"], METHOD, "add").done
    found = open_gates(run).set_index("split")
    assert (found["method"] == METHOD).all()
    assert found.loc["in_scope", ["own", "other", "neither"]].tolist() == [1, 0, 0]  # of both feedbacks' prompts
    assert (found.loc[["near_scope", "out_of_scope"], "neither"] == 1).all()
    store_gate(run, "shouted", lambda row: False)
    assert not two_feedbacks_stage(run, ["short", "shouted"], METHOD, "add").done

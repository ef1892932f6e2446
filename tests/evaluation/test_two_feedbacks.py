"""Two feedbacks in one model: sums of adapters are exact or refused, joint rows are those of both, both are scored."""

from __future__ import annotations

import json
import re
import shutil

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
import torch
import yaml

from c3po_utils.batch.notebook import execute
from c3po_utils.engine.models import load_model
from c3po_utils.evaluation import evaluate, scores, two_feedbacks
from c3po_utils.evaluation.evaluate import collect, evaluate_method, open_judge
from c3po_utils.evaluation.two_feedbacks import TwoFeedbacks
from c3po_utils.feedback.records import Feedback
from c3po_utils.figures import paper_figures
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.files import content_hash
from c3po_utils.runs.jobs import two_feedbacks_job, two_feedbacks_runs
from c3po_utils.sampling.rows import load_rows, stored_settings
from c3po_utils.training import Training
from c3po_utils.training.adapters import add_adapters, load_adapter, load_added
from c3po_utils.training.stage import TrainSettings, train_stage
from tests.servers import Reply, scripted
from tests.stored_run import random_adapter, sampled_for, store_adapter, store_sample
from tests.synthetic import answers

SETTINGS = TrainSettings("c3po", 1e-3, 1.0, 2, 0)


@pytest.fixture(scope="module")
def tiny(tiny_folder) -> str:
    return str(tiny_folder)


def two_adapters(tiny: str, **second):
    """A model with adapters `one` and `two` of unequal ranks and scalings."""
    return random_adapter(tiny, "two", 2, random_adapter(tiny, "one", 1), **{"r": 5, "alpha": 4} | second)


def merged_changes(tiny: str, name: str) -> dict[str, torch.Tensor]:
    """What merging one adapter alone changes in each weight."""
    before = load_model(tiny, dtype=torch.float32).state_dict()
    policy = two_adapters(tiny)
    policy.set_adapter(name)
    after = policy.merge_and_unload().state_dict()
    return {key: after[key] - before[key] for key in before}


def test_the_sum_of_adapters_is_the_sum_of_their_changes(tiny):
    before = load_model(tiny, dtype=torch.float32).state_dict()
    one, other = merged_changes(tiny, "one"), merged_changes(tiny, "two")
    policy = two_adapters(tiny)
    assert add_adapters(policy, ["one", "two"]) < 1e-6
    assert policy.active_adapter == "sum"
    assert policy.peft_config["sum"].r == 8
    after = policy.merge_and_unload().state_dict()
    changed = 0
    for key in before:
        torch.testing.assert_close(after[key] - before[key], one[key] + other[key], atol=1e-5, rtol=1e-5)
        changed += bool((one[key].abs().max() > 0.1) & (other[key].abs().max() > 0.1))
    assert changed == 14  # seven linear layers in each of two blocks


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"use_rslora": True}, "adapter 'two': use_rslora is True, expected False: rsLoRA scales"),
        ({"use_dora": True}, "use_dora is True"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is .*lm_head"),
    ],
)
def test_adapters_that_peft_adds_wrongly_are_refused(tiny, lora, message):
    with pytest.raises(ValueError, match=message):
        add_adapters(two_adapters(tiny, **lora), ["one", "two"])


def test_trained_biases_are_refused(tiny):
    policy = random_adapter(tiny, "two", 2, random_adapter(tiny, "one", 1, bias="lora_only"))
    with pytest.raises(ValueError, match="adapter 'one': bias is 'lora_only', expected 'none'"):
        add_adapters(policy, ["one", "two"])


@pytest.mark.parametrize(
    ("names", "name", "message"),
    [
        (["one", "two"], "two", "an adapter named 'two' already"),
        (["one", "three"], "sum", r"\['one', 'three'\]: expected different ones of \['one', 'two'\]"),
        (["one", "one"], "sum", "expected different ones"),
    ],
)
def test_names_that_peft_would_pass_over_are_refused(tiny, names, name, message):
    with pytest.raises(ValueError, match=message):
        add_adapters(two_adapters(tiny), names, name)


def test_a_sum_that_is_not_exact_is_an_error(tiny, monkeypatch):
    policy = two_adapters(tiny)
    approximate = policy.add_weighted_adapter
    monkeypatch.setattr(
        policy, "add_weighted_adapter", lambda *a, combination_type: approximate(*a, combination_type="svd")
    )
    with pytest.raises(RuntimeError, match="'sum' is not the sum of"):
        add_adapters(policy, ["one", "two"])


def test_a_model_keeps_its_adapters_when_another_is_loaded(tiny, tmp_path):
    for seed, id in enumerate(("one", "two")):
        store_adapter(tmp_path, id, "c3po", tiny, seed, r=3 + seed)
    policy, difference = load_added(tmp_path, ["one", "two"], "c3po", tiny)
    assert set(policy.peft_config) == {"one", "two", "sum"}
    assert difference < 1e-5
    with pytest.raises(ValueError, match="an adapter named 'one' already"):
        load_adapter(policy, tmp_path / "train/one/c3po", name="one")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
    """Two sampled feedbacks, an adapter of each and a joint one."""
    run = tmp_path_factory.mktemp("two_feedbacks")
    store_sample(run, "short", tiny)
    store_sample(run, "shouted", tiny, general_tests={"general/0"})
    for seed, id in enumerate(("short", "shouted", "short+shouted")):
        store_adapter(run, id, "c3po", tiny, seed)
    for record in (SHORT, SHOUTED):
        sampled_for(run, record)
    return run


def feedback(id: str, metric: dict) -> Feedback:
    return Feedback(id=id, content="c", domain="d", effect="e", source="human", kind="style", metric=metric)


SHORT = feedback("short", {"name": "words_at_most", "value": 3})
SHOUTED = feedback("shouted", {"name": "upper_share", "value": 0.8})


def test_joint_rows_are_those_of_both_feedbacks(run):
    training = Training(run, "short+shouted", SETTINGS)
    rows, preflight = training.rows, training.preflight
    assert {row["id"].split("/")[0] for row in rows} == {"short", "shouted"}
    assert {row["near_scope_id"].split("/")[0] for row in rows} == {"short", "shouted"}
    assert (preflight.pairs, preflight.near_scope) == (8, 8)
    # one feedback trains on general/1, the other tests on it
    assert {row["id"] for row in load_rows(run, "shouted", "train") if "general" in row["id"]} >= {"general/1"}
    assert {row["out_of_scope_id"] for row in rows} == {"general/2", "general/3"}
    assert preflight.out_of_scope == 2


def test_a_joint_stage_knows_the_rows_of_both_and_a_single_one_is_what_it_was(run):
    hashes = {id: content_hash(run / "sample" / id / "rows.jsonl") for id in ("short", "shouted")}
    joint = train_stage(run, "short+shouted", SETTINGS)
    assert joint.identity["rows"] == hashes
    assert joint.folder == run / "train" / "short+shouted" / "c3po"
    single = train_stage(run, "short", SETTINGS).identity
    assert single["rows"] == hashes["short"]
    assert single["sampled_with"]["system_prompt"] == "Be brief."


def test_a_joint_adapter_is_trained_as_any_other(run):
    settings = TrainSettings("scd", 1e-3, 1.0, 4, 0, lora={"r": 2})
    training = Training(run, "short+shouted", settings)
    assert len(training.fit()) == 2  # eight pairs, four a step
    assert train_stage(run, "short+shouted", settings).done
    assert (training.stage.folder / "adapter_model.safetensors").exists()


def test_feedbacks_of_different_models_cannot_be_joined(tmp_path):
    store_sample(tmp_path, "a", "one")
    store_sample(tmp_path, "b", "other")
    with pytest.raises(ValueError, match=r"a\+b: expected one model for all of them, found .*'b': 'other'"):
        stored_settings(tmp_path, "a+b")


def test_an_adapter_that_is_not_trained_is_asked_for(run):
    with pytest.raises(FileNotFoundError, match=r"02_train.ipynb with feedback='short\+shouted'"):
        two_feedbacks.two_feedbacks_stage(run, ["short", "shouted"], "dpo", "joint")
    three = ["short", "shouted", "third"]
    for ids, how in ((["short"], "add"), (three, "add"), (["short", "short", "shouted"], "add"), (three[:2], "mean")):
        with pytest.raises(ValueError, match=r"expected two different feedbacks and how in .'add', 'joint'.; found"):
            two_feedbacks.two_feedbacks_stage(run, ids, "c3po", how)
    assert two_feedbacks.joint_name(["x.yaml#short", "x.yaml#shouted"]) == "x.yaml#short+shouted"


@pytest.mark.parametrize("how", ["add", "joint"])
def test_both_feedbacks_are_scored_on_both_test_sets(run, how, monkeypatch):
    rows = TwoFeedbacks(run, [SHORT, SHOUTED], "c3po", how).answers()
    tests = {id: {row["id"] for row in load_rows(run, id, "test")} for id in ("short", "shouted")}
    tests["short"].remove("general/1")  # on which the other feedback was trained
    for scored in tests:
        for id in tests:
            found = [row for row in rows if (row["feedback"], row["prompts_of"]) == (scored, id)]
            assert {row["prompt_id"] for row in found} == tests[id]
    stage = two_feedbacks.two_feedbacks_stage(run, ["short", "shouted"], "c3po", how)
    assert stage.folder.parent == run / "eval" / "short+shouted"
    assert stage.manifest.get("difference_from_sum", 0.0) < 1e-5
    monkeypatch.setattr(evaluate, "score_rows", lambda *_: pytest.fail("scored again"))
    assert TwoFeedbacks(run, [SHORT, SHOUTED], "c3po", how).answers() == rows


def answer_wins(asked) -> Reply:
    """The verdict of a judge who likes whatever is not the baseline."""
    _, second = asked.prompt.split("<second_answer>")
    return Reply(
        json.dumps({"reasons": "not the old one", "verdict": 1 if re.search(r"It is (price|chat)\.", second) else 5})
    )


def test_without_a_metric_a_judge_scores_two_feedbacks(run, tmp_path):
    run = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    kind, loud = (sampled_for(run, one.model_copy(update={"metric": None})) for one in (SHORT, SHOUTED))
    with pytest.raises(ValueError, match="'short' has no metric"):
        TwoFeedbacks(run, [kind, loud], "c3po", "add").answers()
    with scripted(answer_wins) as server:
        judge = open_judge(run, f"openai:m@{server.url}")
        rows = TwoFeedbacks(run, [kind, loud], "c3po", "add", judge).answers()
    assert {row["score"] for row in rows if row["answer"]} == {1}
    stage = two_feedbacks.two_feedbacks_stage(run, ["short", "shouted"], "c3po", "add", judge)
    assert stage.done
    assert not two_feedbacks.two_feedbacks_stage(run, ["short", "shouted"], "c3po", "add").done
    together = pd.DataFrame(rows)
    found = two_feedbacks.crossings(together.assign(feedback=together["prompts_of"]), together, [kind, loud])
    assert found["added"].to_list() == [1.0, 1.0]
    assert found[["baseline", "single"]].isna().all(axis=None)


def test_figure_7_compares_the_same_prompts(run):
    for one in (SHORT, SHOUTED):
        for method in ("base_resampled", "c3po"):
            evaluate_method(run, one, method)
    for how in ("add", "joint"):
        TwoFeedbacks(run, [SHORT, SHOUTED], "c3po", how).answers()
    singles, together = collect(run), two_feedbacks.collect_two_feedbacks(run)
    assert "setting" not in singles
    table = two_feedbacks.side_by_side(singles, together)
    prompts = (
        table[table.method == "c3po"]
        .groupby("setting")[["feedback", "prompt_id"]]
        .apply(lambda rows: sorted(zip(rows.feedback, rows.prompt_id, strict=True)))
    )
    assert prompts["single"] == prompts["added"] == prompts["joint"]
    assert set(table.feedback) == {"short (short+shouted)", "shouted (short+shouted)"}
    shares = two_feedbacks.setting_shares(table)
    assert shares.groupby("setting").method.unique().map(set).to_list() == [{"base_resampled", "c3po"}] * 3
    own = together[
        (together.setting == "added") & (together.feedback == together.prompts_of) & (together.split == "in_scope")
    ]
    mean = own.groupby("feedback").passes.mean().mean()
    drawn = shares[(shares.setting == "added") & (shares.method == "c3po") & (shares.split == "in_scope")]
    assert drawn.share.item() == pytest.approx(mean)
    assert len(paper_figures.fig7(shares)) == 3
    plt.close("all")
    assert set(two_feedbacks.as_methods(table).method) == {"base_resampled", "c3po", "c3po@added", "c3po@joint"}


def test_a_feedback_alone_stands_beside_two_only_where_the_same_metric_or_judge_scored(capsys):
    singles = answers(2, ("base_resampled", "c3po", "scd")).assign(scored_by="metric")
    singles.loc[singles.method == "scd", "scored_by"] = "openai:m"
    asked = singles[singles.method != "base_resampled"]
    pair = {"two_feedbacks": "+".join(asked.feedback.unique()), "setting": "added", "prompts_of": asked.feedback}
    table = two_feedbacks.side_by_side(singles, asked.assign(scored_by="metric", **pair))
    alone = table[table.setting == "single"]
    assert set(alone.method) == {"base_resampled", "c3po"}
    assert len(alone) == 2 * 2 * 60
    assert capsys.readouterr().out.splitlines() == [
        f"Left out: scd on {id} alone: scored by openai:m, with another feedback by metric."
        for id in asked.feedback.unique()
    ]


def test_a_feedback_beside_several_others_is_one_feedback():
    singles = answers(3, ("base_resampled", "c3po"))
    asked = singles[singles.method == "c3po"]
    hub, *others = asked.feedback.unique()
    pairs = [
        asked[asked.feedback.isin([hub, other])].assign(two_feedbacks=f"{hub}+{other}", setting="added")
        for other in others
    ]
    together = pd.concat([pair.assign(prompts_of=pair.feedback) for pair in pairs])
    hubs = (together.feedback == hub) & (together.split == "in_scope")
    together.loc[hubs, "passes"] = together.loc[hubs, "two_feedbacks"] == f"{hub}+{others[0]}"
    table = two_feedbacks.side_by_side(singles, together)
    assert table.feedback.nunique() == 4  # figure 7's dots
    shares = two_feedbacks.setting_shares(table).set_index(["setting", "method", "split"])
    assert set(shares.pop("pairs")) == {""}
    assert set(shares.n_feedbacks) == {3}
    alone = scores.application_share(singles).set_index(["method", "split"])
    pd.testing.assert_frame_equal(shares.loc["single"], alone)
    pd.testing.assert_frame_equal(shares.loc["added"].loc[["base_resampled"]], alone.loc[["base_resampled"]])
    own = asked[asked.split == "in_scope"].groupby("feedback").passes.mean()
    added = shares.loc[("added", "c3po", "in_scope")]
    assert added.share == pytest.approx((0.5 + own[others[0]] + own[others[1]]) / 3)
    assert (added.n_prompts, shares.n_prompts["single", "c3po", "in_scope"]) == (80, 60)
    named = two_feedbacks.as_methods(table)
    assert scores.paired_differences(named, "c3po@added", ["c3po"]).n_feedbacks.item() == 3


def test_a_method_alone_is_averaged_over_the_feedbacks_it_was_put_beside_others_and_panels_of_fewer_say_so():
    singles = answers(4, ("base_resampled", "c3po", "scd"))
    a, b, c, d = singles.feedback.unique()
    pairs = [("c3po", "added", (a, b)), ("c3po", "added", (c, d)), ("c3po", "joint", (a, b)), ("scd", "added", (a, b))]
    together = pd.concat(
        singles[(singles.method == method) & singles.feedback.isin(pair)].assign(
            two_feedbacks="+".join(pair), setting=setting, prompts_of=lambda rows: rows.feedback
        )
        for method, setting, pair in pairs
    )
    shares = two_feedbacks.setting_shares(two_feedbacks.side_by_side(singles, together))
    counts = shares.groupby(["setting", "method"]).n_feedbacks.first()
    assert (counts["single", "c3po"], counts["added", "c3po"], counts["joint", "c3po"]) == (4, 4, 2)
    assert (counts["single", "scd"], counts["added", "scd"]) == (2, 2)
    titles = [ax.get_title() for ax in paper_figures.fig7(shares)]
    plt.close("all")
    assert titles == [*list(paper_figures.SETTINGS.values())[:2], "Two feedbacks, one adapter\n(1 of 2 pairs)"]


def test_prompts_without_a_category_are_the_same_ones_beside_every_other_feedback():
    table = answers(1, ("c3po",)).assign(category=None, prompts_of="feedback-000", setting="added")
    table = pd.concat([table.assign(two_feedbacks=f"feedback-000+{other}") for other in ("a", "b")])
    assert two_feedbacks.as_methods(table).category.nunique() == table.prompt_id.nunique()


def test_the_runner_goes_through_all_two_feedbacks():
    config = RunConfig(
        run="results/x", methods=["revised", "scd", "c3po"], two_feedbacks=[["cs_question", "boss_signoff"]]
    )
    names = ["cs_question", "boss_signoff"]
    assert two_feedbacks_runs(config) == [(names, "scd", "add"), (names, "c3po", "add")]
    both = config.model_copy(update={"two_feedbacks_methods": ["c3po"], "two_feedbacks_how": ["add", "joint"]})
    assert two_feedbacks_runs(both) == [(names, "c3po", "add"), (names, "c3po", "joint")]
    for pair, message in ((["cs_question", "bos_signoff"], "did you mean 'boss_signoff'"), (["scd"] * 2, "valid: ")):
        with pytest.raises(ValueError, match=rf"is no feedback of this run \({message}"):
            two_feedbacks_runs(config.model_copy(update={"two_feedbacks": [pair]}))
    for pair in (["cs_question"] * 2, [*names, "cs_question"]):
        with pytest.raises(ValueError, match="expected two different feedbacks"):
            two_feedbacks_runs(config.model_copy(update={"two_feedbacks": [pair]}))


def test_the_notebook_tells_of_two_feedbacks(run, tmp_path):
    records = [record.model_dump(mode="json", exclude_none=True) for record in (SHORT, SHOUTED)]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"feedbacks": records}))
    for one in (SHORT, SHOUTED):
        evaluate_method(run, one, "c3po")
    names = [f"{tmp_path / 'own.yaml'}#{id}" for id in ("short", "shouted")]
    job = two_feedbacks_job(RunConfig(run=str(run), methods=["c3po"]), run, names, "c3po", "add")
    execute(job)
    assert job.done
    outputs = [out for cell in nbformat.read(job.output, as_version=4).cells for out in cell.get("outputs", [])]
    tables = [out["data"]["text/html"] for out in outputs if "text/html" in out.get("data", {})]
    assert len(tables) == 6  # scores of each feedback, crossings, an answer card for each, differences
    assert "C3PO, added" in tables[0]
    assert "difference_from_sum" in "".join(out.get("text", "") for out in outputs)


def test_crossings_count_one_effect_where_the_other_applies(run):

    rows = TwoFeedbacks(run, [SHORT, SHOUTED], "c3po", "add").answers()
    together = pd.DataFrame(rows)
    inside = together[
        (together.feedback == "short") & (together.prompts_of == "shouted") & (together.split == "in_scope")
    ]
    singles = inside.assign(feedback="shouted", answer=["one two three", "one two three four"])
    found = two_feedbacks.crossings(singles, together, [SHORT, SHOUTED]).set_index("effect of")
    assert found.loc["short", "single"] == 0.5
    assert found.loc["short", "baseline"] == 1.0  # "It is price."
    assert found.loc["short", "added"] == inside.passes.mean()

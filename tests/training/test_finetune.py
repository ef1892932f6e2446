"""From a run's rows to what is trained on: the settings that choose among pairs."""

from __future__ import annotations

import shutil

import pytest

from c3po_utils.runs import files, stage
from c3po_utils.runs.files import read_json, read_jsonl, write_json, write_jsonl
from c3po_utils.runs.stage import MANIFEST
from c3po_utils.training import Training, TrainSettings
from c3po_utils.training.stage import adapter_hash, known_hash
from tests.stored_run import store_sample
from tests.tiny import save_tiny


def training(run, **of_the_method) -> Training:
    return Training(run, "short", TrainSettings("c3po", 1e-3, 1, 2, 0, {}, of_the_method))


@pytest.fixture
def run(tmp_path, tiny_folder):
    """Four pairs to train on, of which one revision is too long for the feedback's metric."""
    store_sample(tmp_path, "short", str(tiny_folder))
    path = tmp_path / "sample" / "short" / "rows.jsonl"
    rows = read_jsonl(path)
    first = next(row for row in rows if row["split"] == "in_scope" and row["fold"] == "train")
    first["revised"] = "This one has far more words than three."
    write_jsonl(path, rows)
    return tmp_path


def test_pairs_that_miss_the_effect_can_be_left_out(run):
    assert training(run).preflight.pairs == 4
    chosen = training(run, only_passing=True)
    assert (len(chosen.rows), chosen.preflight.pairs, chosen.preflight.filtered) == (3, 3, 1)
    assert all("far more words" not in chosen.tokenizer.decode(row["chosen_ids"]) for row in chosen.rows)


def test_pairs_can_be_limited(run):
    assert training(run, max_prompts=2).preflight.pairs == 2
    with pytest.raises(ValueError, match="'max_prompts': expected a number greater than or equal to 0, found -1"):
        _ = training(run, max_prompts=-1).rows


def test_what_is_trained_on_is_shown_also_where_no_pair_is(run):
    for once, segment in ((training(run), "chosen"), (training(run, preference=0.0), "near_scope")):
        answer = once.tokenizer.decode(once.rows[0][f"{segment}_ids"])
        assert once.first_pair().endswith(f"assistant\n⟦{answer}⟧")


def test_rows_beyond_the_models_context_are_not_trained_on(run):
    path = run / "sample" / "short" / "rows.jsonl"
    rows = read_jsonl(path)
    first = next(row for row in rows if row["split"] == "in_scope" and row["fold"] == "train")
    first["prompt"] = "Tea? " * 200  # the tiny model's context is 256 tokens
    write_jsonl(path, rows)
    with pytest.raises(ValueError, match=rf"longer than the model's context of 256 tokens, the first '{first['id']}'"):
        _ = training(run, max_dropped_share=0.0).rows
    assert training(run, max_dropped_share=0.2).preflight.dropped == 1


def test_a_finished_training_whose_adapter_or_log_is_damaged_is_trained_again(run):
    once = training(run)
    log = once.fit()
    for name in ("adapter_model.safetensors", "log.json", "probe.safetensors"):
        path = once.stage.path(name)
        path.write_bytes(path.read_bytes()[:-7])
        with pytest.warns(UserWarning, match=rf"{name}: damaged: .*made anew"):
            assert not once.stage.done
        with pytest.warns(UserWarning, match=name):
            assert training(run).fit()["loss"].tolist() == log["loss"].tolist()
        assert once.stage.done


def test_arguments_that_change_nothing_make_no_other_training(run):
    training(run).fit()
    given = {"logging_steps": 2, "save_steps": 5, "save_total_limit": 1, "disable_tqdm": False}
    for key, value in given.items():
        settings = TrainSettings("c3po", 1e-3, 1, 2, 0, training_arguments={key: value})
        assert Training(run, "short", settings).stage.done, key
    other = TrainSettings("c3po", 1e-3, 1, 2, 0, training_arguments={"warmup_steps": 3})
    assert not Training(run, "short", other).stage.done


def test_a_default_that_is_spelled_out_makes_no_other_training(run):
    training(run).fit()
    for method in ({"beta": 0.1}, {"c3po": {"out_weight": 0.2, "near_weight": 0.1}}):
        settings = TrainSettings("c3po", 1e-3, 1, 2, 0, {"r": 64, "alpha": 128, "dropout": 0.05}, method)
        assert Training(run, "short", settings).stage.done, method
    for lora, method in (({"r": 8}, {}), ({}, {"beta": 0.2}), ({"use_rslora": True}, {})):
        assert not Training(run, "short", TrainSettings("c3po", 1e-3, 1, 2, 0, lora, method)).stage.done


def test_a_base_model_that_was_trained_anew_in_its_folder_is_noticed(tmp_path, tiny_folder):
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    store_sample(tmp_path, "short", str(base))
    training(tmp_path).fit()
    assert training(tmp_path).stage.done
    save_tiny(base, seed=5)
    assert training(tmp_path).stage.changes().keys() == {"weights"}
    assert not training(tmp_path).stage.done
    manifest = read_json(training(tmp_path).stage.path(MANIFEST))
    del manifest["identity"]["weights"]
    write_json(training(tmp_path).stage.path(MANIFEST), manifest)
    assert training(tmp_path).stage.done, "what does not tell of weights is taken as it is"


def test_a_large_adapter_is_not_read_to_say_what_is_done(run, monkeypatch):
    training(run).fit()
    folder, whole = training(run).stage.folder, adapter_hash(training(run).stage.folder)
    monkeypatch.setattr(stage, "SMALL", 0)
    monkeypatch.setattr(stage, "content_hash", lambda *_: pytest.fail("read whole"))
    assert adapter_hash(folder) == known_hash(folder) == whole
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(files.DamagedFile, match=r"damaged: expected .* bytes"):
        known_hash(folder)


def test_what_is_replaced_is_told_before_it_is_gone(run, capsys):
    training(run).fit()
    assert "is replaced" not in capsys.readouterr().out
    training(run, beta=0.05).fit()
    told = capsys.readouterr().out
    assert "train/short/c3po is replaced, as it was trained otherwise (" in told
    assert "beta None, now 0.05" in told
    assert "such as c3po@mine, keeps both" in told
    for epochs in (1, 2):
        Training(run, "short", TrainSettings("c3po@mine", 1e-3, epochs, 2, 0, {}, {})).fit()
    assert "such as c3po@mine2, keeps both" in capsys.readouterr().out


def test_without_a_metric_there_is_nothing_to_choose_by(run):
    path = run / "sample" / "short" / MANIFEST
    manifest = read_json(path)
    manifest["identity"]["feedback"]["metric"] = None
    write_json(path, manifest)
    with pytest.raises(ValueError, match="'short' has no metric"):
        _ = training(run, only_passing=True).rows

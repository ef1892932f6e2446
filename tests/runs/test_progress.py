"""Bars of headless jobs: a file that says how far they are, and nothing on the screen."""

from __future__ import annotations

import json
import os
import time

from c3po_utils.runs import progress


def test_a_headless_bar_tells_its_file_and_shows_nothing(tmp_path, capfd):
    with progress.telling(tmp_path, "train/boss_signoff/c3po"):
        (name, first), *others = progress.at_work(tmp_path).items()
        assert (name, others) == ("train/boss_signoff/c3po", [])
        assert progress.in_words(first) == name
        with progress.bar(total=40, desc="training c3po", unit="step") as bar:
            bar.update(12)
            time.sleep(0.02)
            bar.refresh()
            (state,) = progress.at_work(tmp_path).values()
            assert (state["stage"], state["n"], state["total"], state["unit"]) == ("training c3po", 12, 40, "step")
            assert progress.in_words(state).startswith(f"{name}: training c3po 12/40, 00:0")
    assert not list((tmp_path / progress.FOLDER).iterdir())
    assert capfd.readouterr() == ("", "")
    assert progress.VARIABLE not in os.environ


def test_a_bar_outside_a_job_is_shown(capfd):
    with progress.bar(total=2, desc="answers") as bar:
        bar.update(2)
    assert "answers: 100%" in capfd.readouterr().err


def test_what_a_killed_job_left_is_not_at_work(tmp_path):
    path = progress.progress_file(tmp_path, "figures")
    path.parent.mkdir()
    path.write_text(json.dumps({"job": "figures"}))
    assert set(progress.at_work(tmp_path)) == {"figures"}
    os.utime(path, (1, time.time() - progress.STALE_S - 1))
    assert progress.at_work(tmp_path) == {}


def test_a_bar_whose_file_is_gone_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv(progress.VARIABLE, str(tmp_path / "gone" / "x.json"))
    assert list(progress.bar(iterable=range(3), total=3)) == [0, 1, 2]
    assert not list(tmp_path.iterdir())

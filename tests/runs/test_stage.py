"""Run folders: what is done, what changed, and files that are whole or not there."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from c3po_utils.runs.files import DamagedFile, content_hash, read_jsonl, write_atomic, write_jsonl
from c3po_utils.runs.stage import Stage, done_stages, git_commit, intact, pack


def test_a_stage_is_done_when_its_manifest_says_so(tmp_path):
    stage = Stage(tmp_path / "sample" / "a", {"seed": 1})
    with pytest.raises(KeyError), stage:
        write_jsonl(stage.path("rows.jsonl"), [{"id": {}["x"]}])
    assert not stage.done
    with stage:
        stage.notes["counts"] = 3
    assert stage.done
    manifest = json.loads(stage.path("manifest.json").read_text())
    assert manifest["counts"] == 3
    assert {"wall_s", "hardware", "packages", "commit", "peak_gib"} <= manifest.keys()
    assert [folder.name for folder, _ in done_stages(tmp_path, "sample")] == ["a"]


def test_a_finished_stage_that_says_of_no_inputs_is_damaged(tmp_path):
    (folder := tmp_path / "eval" / "a").mkdir(parents=True)
    (folder / "manifest.json").write_text('{"status": "done"}')
    with pytest.raises(DamagedFile, match=r"eval/a/manifest\.json: expected a finished stage's `identity`"):
        list(done_stages(tmp_path, "eval"))


def test_changed_inputs_are_noticed_and_said(tmp_path):
    with Stage(tmp_path, {"seed": 1, "rows": "x"}):
        pass
    changed = Stage(tmp_path, {"seed": 2, "rows": "x"})
    assert not changed.done
    assert changed.changes() == {"seed": (1, 2)}
    assert Stage(tmp_path, {"seed": 1, "rows": "x"}).changes() == {}


def test_an_interrupted_rewrite_is_not_taken_for_the_old_result(tmp_path):
    with Stage(tmp_path, {"seed": 1}):
        pass
    with pytest.raises(KeyboardInterrupt), Stage(tmp_path, {"seed": 1}):
        raise KeyboardInterrupt
    assert not Stage(tmp_path, {"seed": 1}).done


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "a.txt", "old")

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_json_lines_survive_any_text_and_name_a_bad_line(tmp_path):
    rows = [{"text": "a\u2028b\u0085c\nd \U0001f600"}, {"text": ""}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(path) == rows
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: expected one JSON object"):
        read_jsonl(path)


def test_content_hash_sees_content_only(tmp_path):
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1}) != content_hash({"a": 2, "b": 1})
    for name in ("x", "y"):
        write_atomic(tmp_path / name / "data", "same")
    assert content_hash(tmp_path / "x") == content_hash(tmp_path / "y") != content_hash(tmp_path)


def test_a_stage_without_its_product_is_not_done(tmp_path):
    with Stage(tmp_path, {"seed": 1}, "adapter.bin") as stage:
        stage.path("adapter.bin").write_text("weights")
    assert stage.done
    stage.path("adapter.bin").unlink()
    assert not stage.done


def test_a_commit_is_marked_by_changed_code_and_not_by_results(tmp_path):
    assert git_commit(tmp_path) == "unknown"

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "results").mkdir()
    for name in ("code.py", "results/table.md"):
        (tmp_path / name).write_text("first")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "results" / "table.md").write_text("made again")
    clean = git_commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{12}", clean)
    (tmp_path / "code.py").write_text("changed")
    assert git_commit(tmp_path) == clean + "+"


def packed_stage(folder):
    stage = Stage(folder / "sample" / "a", {"seed": 1}, "rows.jsonl")
    with stage:
        write_jsonl(stage.path("rows.jsonl"), [{"id": "a\u2028", "text": "é" * 400}, {"id": "b"}])
    return stage


def test_packed_rows_are_the_same_rows_by_the_same_hash(tmp_path):
    stage = packed_stage(tmp_path)
    path = stage.path("rows.jsonl")
    rows, known = read_jsonl(path), intact(stage.folder, "rows.jsonl")
    (packed,) = pack(tmp_path)
    assert [entry.name for entry in sorted(stage.folder.iterdir())] == ["manifest.json", "rows.jsonl.gz"]
    assert packed.stat().st_size < 150
    assert (read_jsonl(path), intact(stage.folder, "rows.jsonl"), content_hash(path)) == (rows, known, known)
    assert stage.done
    assert pack(tmp_path) == []
    first = packed.read_bytes()
    write_jsonl(path, rows)
    pack(tmp_path)
    assert packed.read_bytes() == first


def test_a_damaged_packed_file_is_noticed_and_made_anew(tmp_path):
    stage = packed_stage(tmp_path)
    (packed,) = pack(tmp_path)
    whole = packed.read_bytes()
    packed.write_bytes(whole[:-9])
    with pytest.raises(DamagedFile, match=r"rows.jsonl.gz: expected a gzip file"):
        read_jsonl(stage.path("rows.jsonl"))
    with pytest.warns(UserWarning, match="It is made anew"):
        assert not stage.done
    with stage:
        assert not packed.exists()  # else it would be read once the new rows are gone
        write_jsonl(stage.path("rows.jsonl"), [{"id": "c"}])
    assert stage.done

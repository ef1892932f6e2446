"""Damaged files, full disks and folders that cannot be written: named, and never taken for a finished stage."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest

from c3po_utils.runs import stage as stages
from c3po_utils.runs.files import DamagedFile, read_json, read_jsonl, write_atomic, write_json, write_jsonl
from c3po_utils.runs.stage import Stage, done_stages, intact
from tests.disk import largest_file

ROWS = [{"id": n, "text": "some words"} for n in range(5)]


def finish(folder, rows=ROWS) -> Stage:
    with Stage(folder / "eval" / "a", {"seed": 1}, "rows.jsonl") as stage:
        write_jsonl(stage.path("rows.jsonl"), rows)
    return Stage(stage.folder, {"seed": 1}, "rows.jsonl")


DAMAGE = {
    b"": "the file is empty",
    b'{"id": 0}\n': "expected 5 rows, as manifest.json says; found 1 rows",
    b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)[:-9]: "expected 5 rows",
    b"".join(json.dumps(row).encode().replace(b"some", b"SOME") + b"\n" for row in ROWS): "expected hash",
    b"".join(json.dumps(row).encode() + b" \n" for row in ROWS): "expected 160 bytes",
}


@pytest.mark.parametrize("content", DAMAGE, ids=DAMAGE.values())
def test_a_stage_whose_rows_are_damaged_is_not_done_and_is_made_anew(tmp_path, content):
    stage = finish(tmp_path)
    assert stage.done
    stage.path("rows.jsonl").write_bytes(content)
    with pytest.warns(UserWarning, match=rf"rows\.jsonl: .*{DAMAGE[content]}.*made anew"):
        assert not stage.done
    with pytest.raises(DamagedFile, match=rf"rows\.jsonl: .*{DAMAGE[content]}.*run the notebook"):
        intact(stage.folder, "rows.jsonl")
    assert finish(tmp_path).done


@pytest.mark.parametrize("content", ["", '{"status": "done", "ident', "\x00\x01", "[]", '"done"', "null"])
def test_a_damaged_manifest_is_named_and_no_stage_is_done_by_it(tmp_path, content):
    stage = finish(tmp_path)
    stage.path("manifest.json").write_text(content)
    with pytest.warns(UserWarning, match=r"manifest\.json: expected .*JSON.*made anew"):
        assert not stage.done
    for read in (lambda: list(done_stages(tmp_path, "eval")), lambda: intact(stage.folder, "rows.jsonl")):
        with pytest.raises(DamagedFile, match=r"manifest\.json: expected"):
            read()
    assert finish(tmp_path).done


def test_manifests_from_before_files_were_noted_stay_valid(tmp_path):
    stage = finish(tmp_path)
    manifest = stage.manifest
    assert manifest.pop("files")["rows.jsonl"].keys() == {"rows", "bytes", "hash"}
    write_json(stage.path("manifest.json"), manifest)
    assert stage.done
    assert intact(stage.folder, "rows.jsonl")
    stage.path("rows.jsonl").write_text("")
    with pytest.warns(UserWarning, match="the file is empty"):
        assert not stage.done


def test_large_files_are_known_by_their_size_until_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "SMALL", 3)
    stage = finish(tmp_path)
    path = stage.path("rows.jsonl")
    path.write_bytes(path.read_bytes().replace(b"some", b"SOME"))
    assert stage.done
    with pytest.raises(DamagedFile, match="expected hash"):
        intact(stage.folder, "rows.jsonl")
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.warns(UserWarning, match="bytes"):
        assert not stage.done


def test_what_lay_in_a_stage_is_gone_when_the_work_begins_again(tmp_path):
    finish(tmp_path)
    with pytest.raises(KeyboardInterrupt), Stage(tmp_path / "eval" / "a", {"seed": 2}, "rows.jsonl"):
        raise KeyboardInterrupt
    assert list((tmp_path / "eval" / "a").iterdir()) == []


@pytest.mark.parametrize("line", ["7", "[]", '{"a": ', "\x00"])
def test_a_line_that_is_no_object_is_an_error_with_its_number(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(DamagedFile, match=r"rows\.jsonl, line 2: expected one JSON object"):
        read_jsonl(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_files_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        path = write_atomic(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_full_disk_is_one_error_that_names_the_file_and_a_rerun_continues(tmp_path):
    with pytest.raises(OSError, match=r"File too large: '.*/eval/a/rows\.jsonl'$"), largest_file(100):
        finish(tmp_path)
    assert list((tmp_path / "eval" / "a").iterdir()) == []
    assert finish(tmp_path).done


def test_a_manifest_that_cannot_be_written_leaves_the_stage_undone(tmp_path):
    with pytest.raises(OSError, match=r"manifest\.json'$"), largest_file(300):
        finish(tmp_path)
    assert [path.name for path in (tmp_path / "eval" / "a").iterdir()] == ["rows.jsonl"]
    assert not Stage(tmp_path / "eval" / "a", {"seed": 1}, "rows.jsonl").done


def test_a_read_only_folder_is_named(tmp_path):
    """By another user, as nothing is read-only to root."""
    (tmp_path / "results").mkdir(mode=0o755)
    script = f"""
import os
from c3po_utils.runs.files import write_json
from c3po_utils.runs.stage import Stage
if not os.getuid():
    os.setuid(65534)
else:
    os.chmod({str(tmp_path / "results")!r}, 0o555)
os.listdir({str(tmp_path / "results")!r})
for write in (lambda: write_json({str(tmp_path / "results/run.json")!r}, 1),
              lambda: Stage({str(tmp_path / "results/sample")!r}, {{}}).__enter__()):
    try:
        write()
    except PermissionError as error:
        print(error)
"""
    for folder in (tmp_path, *tmp_path.parents[:3]):  # pytest's own, which others may not enter
        folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    first, second = done.stdout.splitlines()
    assert first.endswith("results/run.json'")
    assert second.endswith("results/sample'")


def test_json_of_another_kind_is_an_error_that_names_the_file(tmp_path):
    path = write_json(tmp_path / "a.json", [1])
    assert read_json(path) == [1]
    with pytest.raises(DamagedFile, match=r"a\.json: expected a JSON dict, found '\[1\]'"):
        read_json(path, dict)

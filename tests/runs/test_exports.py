"""What every export needs: finding a run, choosing parts of it, replacing what was exported and nothing else."""

import os
from pathlib import Path

import pytest

from c3po_utils.runs import exports, stage


def test_a_run_goes_by_its_name_in_results_or_its_path(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "ROOT", tmp_path)
    (tmp_path / "results" / "demo").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    assert exports.find_run("demo") == exports.find_run("results/demo") == tmp_path / "results" / "demo"
    assert exports.find_run(tmp_path / "elsewhere") == tmp_path / "elsewhere"
    with pytest.raises(FileNotFoundError, match=r"no run 'dmo'.*did you mean 'demo'\?"):
        exports.find_run("dmo")


def test_names_are_chosen_among_those_there_are():
    assert exports.chosen("method", ["b"], ["a", "b"], "here") == ["b"]
    assert exports.chosen("method", [], ["a", "b", "a"], "here") == ["a", "b"]
    assert exports.only("method", None, ["a"], "here") == "a"
    with pytest.raises(ValueError, match=r"here has no method 'dop' \(did you mean 'dpo'\?\)"):
        exports.only("method", "dop", ["dpo", "scd"], "here")
    with pytest.raises(ValueError, match="here has several: name one method of dpo, scd"):
        exports.only("method", None, ["dpo", "scd"], "here")
    with pytest.raises(ValueError, match="here has no method"):
        exports.chosen("method", [], [], "here")


def test_a_result_is_whole_or_absent(tmp_path):
    with pytest.raises(ZeroDivisionError), exports.placed(tmp_path / "out") as folder:
        folder.write_text(f"{1 / 0}")
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_replaced_only_when_asked_and_nothing_else_ever(tmp_path):
    for content in ("old", "new"):
        with exports.placed(tmp_path / "out", replace=content == "new") as folder:
            folder.mkdir()
            (folder / "README.md").write_text(exports.MARK)
            (folder / content).write_text(content)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "new"}
    with pytest.raises(FileExistsError, match=r"is there already.*--force"), exports.placed(tmp_path / "out"):
        pass
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").touch()
    with pytest.raises(FileExistsError, match="is no earlier export"), exports.placed(tmp_path / "home", replace=True):
        pass
    assert (tmp_path / "home" / "letter").exists()


def test_an_earlier_export_stays_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    replace = os.replace

    def refuse(source, target) -> None:
        if Path(source).name == "made":
            raise PermissionError("another program has it open")
        replace(source, target)

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text(exports.MARK)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError), exports.placed(tmp_path / "out", replace=True) as folder:
        folder.mkdir()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["out", "out/README.md"]

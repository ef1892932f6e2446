"""Sampled data of the reference implementation: rows as ours, failures typed, nothing matched by its place."""

from __future__ import annotations

import pytest

from c3po_utils.feedback.files import FeedbackError
from c3po_utils.feedback.foreign import Report
from c3po_utils.feedback.records import Feedback, write_feedbacks
from c3po_utils.runs.files import read_json, read_jsonl
from c3po_utils.sampling import open_sample, stored_settings
from c3po_utils.sampling.reference import Given, import_sample, prompt_ids
from c3po_utils.sampling.settings import SampleSettings
from tests.reference_files import CONTENT, DOMAIN, EFFECT, columns, write_sample

TEA = Feedback(id="tea", content=CONTENT, domain=DOMAIN, effect=EFFECT, source="human", kind="content")


def imported(tmp_path, given=None, lenient=False, feedback=TEA, **changes):
    folder = write_sample(tmp_path / "there", **changes)
    report = Report(lenient)
    import_sample(folder, tmp_path / "run", feedback, given or Given("owner/base"), report)
    return report


def rows(tmp_path):
    return read_jsonl(tmp_path / "run" / "sample" / "tea" / "rows.jsonl")


def test_rows_have_our_columns_splits_and_folds(tmp_path):
    report = imported(tmp_path)
    found = rows(tmp_path)
    assert len(found) == 3 * 9
    first = next(row for row in found if row["split"] == "near_scope" and row["fold"] == "train")
    assert first["id"].startswith("tea/near_scope/what-of-cups-and-")
    assert {key: value for key, value in first.items() if key != "id"} == {
        "feedback": "tea", "split": "near_scope", "category": "imported, train", "fold": "train",
        "prompt": "What of cups and 0?", "baseline": "It is 0.", "baseline_status": "ok",
        "revised": "Yes, it is so. Assam 0.", "revised_status": "ok",
        "in_context": "Yes, it is so. Sencha 0.", "in_context_status": "ok",
        "in_context_cot": "Yes, it is so. 0.", "in_context_cot_status": "ok",
    }  # fmt: skip
    assert {row["category"] for row in found if row["split"] == "out_of_scope"} == {"general"}
    assert len({row["id"] for row in found}) == len(found)
    manifest = read_json(tmp_path / "run" / "sample" / "tea" / "manifest.json")
    assert manifest["categories"] == ["green", "black", "white"]
    assert manifest["counts"]["baseline"] == {"ok": 27}
    assert "27 rows -> " in report.imported[0]
    settings = stored_settings(tmp_path / "run", "tea")
    assert (settings.model, settings.system_prompt, settings.max_new_tokens) == ("owner/base", "", 512)


def test_calls_that_failed_there_are_failed_rows_here(tmp_path):
    train = columns("teas and", 6)
    train["baseline_response"][0], train["revised_response"][1], train["revised_response"][2] = None, "None", ""
    train["prompt"][5] = "None"
    report = imported(tmp_path, prompts={"train": train, "test": columns("teas or", 2)})
    by_prompt = {row["prompt"]: row for row in rows(tmp_path)}
    assert "None" not in by_prompt
    failed = by_prompt["What of teas and 0?"]
    assert (failed["baseline"], failed["baseline_status"]) == ("", "failed")
    assert failed["baseline_reason"] == "no answer in the imported data (None)"
    assert by_prompt["What of teas and 1?"]["revised_reason"] == "no answer in the imported data ('None')"
    assert by_prompt["What of teas and 2?"]["revised_status"] == "failed"
    assert "25 rows, 1 of baseline failed, 2 of revised failed, 1 without a prompt left out -> " in report.imported[0]
    counts = read_json(tmp_path / "run" / "sample" / "tea" / "manifest.json")["counts"]
    assert (counts["revised"], counts["prompt"]) == ({"ok": 23, "failed": 2}, {"ok": 25, "failed": 1})


def test_ids_come_from_texts_and_not_from_places():
    one, two = list(prompt_ids("a", "in_scope", ["Is it?", "Was it?"])), list(prompt_ids("a", "in_scope", ["Was it?"]))
    assert one[1] == two[0]
    assert list(prompt_ids("a", "out_of_scope", ["x"])) == list(prompt_ids("b", "out_of_scope", ["x"]))
    first, again = prompt_ids("a", "in_scope", ["Is it?", "Is it?"])
    assert again == f"{first}-2"


def test_test_prompts_that_are_trained_on_are_told(tmp_path):
    both = columns("teas and", 6)
    report = imported(tmp_path, prompts={"train": both, "test": columns("teas and", 2)})
    assert report.notes == ["note: tea: 2 test prompts are among its training prompts, word for word"]


SHORT = columns("teas and", 6) | {"revised_response": ["x"]}
OTHER = columns("teas and", 6) | {"essay_response": ["x"] * 6}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompts": [1]}, "prompts.json: expected the keys train and test, found [1]"),
        ({"prompts": {"train": {}, "test": {}}}, "prompts.json: train.prompt: expected this column, found nothing"),
        ({"prompts": {"train": SHORT, "test": SHORT}}, "train.revised_response: expected 6 values, one for each"),
        ({"prompts": {"train": OTHER | {"prompt": 3}, "test": OTHER}}, "train.prompt: expected a list, found 3"),
        ({"prompts": {"train": OTHER | {"prompt": [{}] * 6}, "test": OTHER}}, "train.prompt[0]: expected a text"),
        ({"prompts": {"train": OTHER, "test": OTHER}}, "train.essay_response: expected a known key"),
        ({"prompts": {"train": SHORT, "test": SHORT, "dev": {}}}, "dev: expected a known key"),
        ({"categories": {"a": 1}}, "categories.json: expected a list of texts, found {'a': 1}"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_file_and_key(tmp_path, changes, says):
    with pytest.raises(FeedbackError) as told:
        imported(tmp_path, **changes)
    assert says in str(told.value)
    assert not (tmp_path / "run").exists()


def test_a_lenient_import_lists_what_it_skips(tmp_path):
    report = imported(tmp_path, lenient=True, prompts={"train": OTHER, "test": OTHER})
    assert len(report.skipped) == 2
    assert "skipped: " in str(report)
    assert "essay_response" in report.skipped[0]
    assert len(rows(tmp_path)) == 12 + 9 + 9
    assert all("essay" not in key for row in rows(tmp_path) for key in row)


def test_a_missing_kind_of_prompts_is_told(tmp_path):
    folder = write_sample(tmp_path / "there")
    (folder / "negative_prompts.json").unlink()
    with pytest.raises(FeedbackError, match=r"negative_prompts\.json: expected the near_scope prompts, found no file"):
        import_sample(folder, tmp_path / "run", TEA, Given("m"), Report())
    import_sample(folder, tmp_path / "run", TEA, Given("m"), report := Report(lenient=True))
    assert len(report.skipped) == 1
    assert {row["split"] for row in rows(tmp_path)} == {"in_scope", "out_of_scope"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[" * 100_000, "expected less deep nesting"),
        ('{"train": ' + "9" * 5000 + "}", "4300"),
        ('{"train": 1, "train": 2}', "expected each key once, found 'train' twice"),
        ('{"train": \n nope}', "line 2, column 2: expected JSON"),
        (b'{"train": "\xff"}', "utf-8"),
        ("", "line 1, column 1: expected JSON"),
    ],
    ids=["deep", "digits", "twice", "no JSON", "no text", "empty"],
)
def test_hostile_files_are_refused(tmp_path, content, says):
    folder = write_sample(tmp_path / "there")
    (folder / "prompts.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FeedbackError) as told:
        import_sample(folder, tmp_path / "run", TEA, Given("m"), Report())
    assert says in str(told.value)
    assert str(folder / "prompts.json") in str(told.value)


def test_importing_again_keeps_what_is_there_and_refuses_other_data(tmp_path):
    imported(tmp_path)
    path = tmp_path / "run" / "sample" / "tea" / "manifest.json"
    before = path.read_bytes()
    folder = next((tmp_path / "there" / "sample").iterdir())
    import_sample(folder, tmp_path / "run", TEA, Given("owner/base"), Report())
    assert path.read_bytes() == before
    with pytest.raises(FileExistsError, match="holds another sample of 'tea'"):
        import_sample(folder, tmp_path / "run", TEA, Given("owner/other"), Report())


def test_an_imported_sample_is_opened_as_it_is(tmp_path):
    imported(tmp_path)
    name = f"{write_feedbacks(tmp_path / 'set.yaml', [TEA])}#tea"
    sample = open_sample(tmp_path / "run", name, SampleSettings("owner/base", categories=30))
    assert sample.stage.done
    assert sample.settings.system_prompt == ""
    assert len(sample.deal()) == len(sample.fill()) == 27
    with pytest.raises(ValueError, match=r"model: expected 'owner/base', whose answers were imported.*'owner/x'"):
        open_sample(tmp_path / "run", name, SampleSettings("owner/x"))
    changed = TEA.model_copy(update={"effect": "no tea is named"})
    (tmp_path / "set.yaml").unlink()
    write_feedbacks(tmp_path / "set.yaml", [changed])
    with pytest.raises(ValueError, match="was imported for another record: feedback differs"):
        open_sample(tmp_path / "run", name, SampleSettings("owner/base"))


def test_damaged_rows_are_imported_again_and_never_sampled(tmp_path):
    imported(tmp_path)
    name = f"{write_feedbacks(tmp_path / 'set.yaml', [TEA])}#tea"
    path = tmp_path / "run" / "sample" / "tea" / "rows.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match="gone or damaged: import it again"),
    ):
        open_sample(tmp_path / "run", name, SampleSettings("owner/base"))
    folder = next((tmp_path / "there" / "sample").iterdir())
    with pytest.warns(UserWarning, match="damaged"):
        import_sample(folder, tmp_path / "run", TEA, Given("owner/base"), Report())
    assert path.read_bytes() == whole


def test_columns_that_were_never_asked_for_may_be_missing(tmp_path):
    bare = {
        fold: {key: value for key, value in columns("teas", 3).items() if key != "cot_response"}
        for fold in ("train", "test")
    }
    imported(tmp_path, prompts=bare)
    assert "in_context_cot" not in next(row for row in rows(tmp_path) if row["split"] == "in_scope")

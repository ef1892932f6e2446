"""Files that are malformed, cut, emptied or changed: the error names the file, or it is made anew."""

from __future__ import annotations

import random
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from c3po_utils.engine.models import load_model
from c3po_utils.feedback.files import FeedbackError
from c3po_utils.feedback.records import FEEDBACK_FOLDER, load_feedbacks, load_general_prompts, load_prompts
from c3po_utils.runs.config import load_config
from c3po_utils.runs.files import DamagedFile, read_json, write_json, write_jsonl
from c3po_utils.runs.parameters import ParameterError
from c3po_utils.runs.stage import MANIFEST, Stage, intact
from c3po_utils.training.adapters import load_adapter, save_adapter
from c3po_utils.training.references import with_references
from c3po_utils.training.stage import CONFIG, LOG, PROBE, WEIGHTS
from tests.benchmarks.faults.line import Line, tried
from tests.feedback.test_records import MALFORMED
from tests.runs.test_check import WRONG_FILES
from tests.runs.test_documents import HOSTILE
from tests.stored_run import random_adapter
from tests.tiny import save_tiny
from tests.token_rows import tiny_model, token_rows

CUTS, CHANGES = 6, 6  # at random places, of each file
OTHER = {
    "empty": b"", "zeros": b"\x00" * 100, "another value": b"[]", "another kind": b"null", "no text": b"\xff\xfe{",
    "half an object": b'{"status": "done", "ident', "deep": b"[" * 100_000, "a long number": b"9" * 5000,
}  # fmt: skip


def damages(whole: bytes, rng: random.Random, changes: int = CHANGES) -> dict[str, bytes]:
    """What may be left of a file: cut or changed at random places, or something else."""
    cuts = (rng.randrange(1, len(whole.rstrip())) for _ in range(CUTS))
    places = (rng.randrange(len(whole)) for _ in range(changes))
    cut = {f"cut at {place}": whole[:place] for place in cuts}
    return cut | {f"changed at {n}": whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :] for n in places} | OTHER


def refused(read: Callable[[], object], path: Path, *kinds: type[Exception]) -> bool:
    """Whether it is read as nothing: an error of these kinds that begins with the file's name, or says it."""
    try:
        read()
    except kinds as error:
        return path.name in str(error)
    return False


def documents(seed: int) -> Iterator[Line]:
    """What people write: sets, runs and prompts, malformed or cut."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "mine.yaml"

        def malformed(text: str) -> bool:
            path.write_text(text)
            return refused(lambda: load_feedbacks(path), path, FeedbackError)

        def hostile(what: str) -> bool:
            path.write_text(HOSTILE[what][0])
            return refused(lambda: load_feedbacks(path), path, FeedbackError)

        def hostile_run(what: str) -> bool:
            path.write_text(HOSTILE[what][0])
            return refused(lambda: load_config(path), path, ParameterError)

        def wrong(number: str) -> bool:
            text, overrides, says = WRONG_FILES[int(number)]
            path.write_text(text)
            try:
                load_config(path, overrides)
            except ParameterError as error:
                return re.search(says, str(error)) is not None
            return False

        yield tried("files: malformed sets of feedback (YAML)", dict(MALFORMED), malformed)
        yield tried("files: bombs, depth and odd values as a set (YAML)", HOSTILE, hostile)
        yield tried("files: bombs, depth and odd values as a run (YAML)", HOSTILE, hostile_run)
        yield tried("files: malformed runs and overrides (YAML)", map(str, range(len(WRONG_FILES))), wrong)
        for which in ("plant_tip.json", "general.jsonl"):
            yield _prompts(Path(name), which, seed)


def _prompts(folder: Path, which: str, seed: int) -> Line:
    """Cut between two lines, a list by hand is a shorter list: that is left out, as are changes of a letter."""
    whole = (FEEDBACK_FOLDER / "prompts" / which).read_bytes()
    spoiled = damages(whole, random.Random(seed), changes=0)
    if which.endswith("l"):
        spoiled = {name: left for name, left in spoiled.items() if not left or left.rstrip() + b"\n" not in whole}
    path = folder / which
    read = partial(load_prompts, path.stem, folder) if path.suffix == ".json" else partial(load_general_prompts, path)

    def attempt(name: str) -> bool:
        path.write_bytes(spoiled[name])
        return refused(read, path, FeedbackError)

    return tried(f"files: prompts, {which} cut or replaced", spoiled, attempt, seed=seed)


def stages(seed: int) -> Iterator[Line]:
    """Rows and answers of a finished stage, and its manifest."""
    rows = [{"id": f"a/{n}", "answer": f"some words é \u2028 {n}", "score": n / 7} for n in range(50)]
    for name in ("rows.jsonl", "answers.jsonl", MANIFEST):
        with tempfile.TemporaryDirectory() as folder:
            product = "rows.jsonl" if name == MANIFEST else name
            stage = Stage(Path(folder) / "a", {"seed": 1}, product)
            with stage:
                write_jsonl(stage.path(product), rows)
            yield _spoiled(stage, name, product, seed)


def _spoiled(stage: Stage, name: str, product: str, seed: int) -> Line:
    """A manifest's own text may say other times, say: of it, changes are left out."""
    path = stage.path(name)
    whole = path.read_bytes()
    spoiled = damages(whole, random.Random(seed), changes=0 if name == MANIFEST else CHANGES)

    def attempt(how: str) -> bool:
        path.write_bytes(spoiled[how])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            done = stage.done
        told = any(name in str(one.message) and "made anew" in str(one.message) for one in caught)
        return not done and told and refused(lambda: intact(stage.folder, product), path, DamagedFile)

    line = tried(f"files: {name} of a finished stage", spoiled, attempt, seed=seed)
    path.write_bytes(whole)
    assert stage.done
    return line


def references(seed: int) -> Line:
    """Log-probabilities of pi_0: a damaged file is made anew, with the same numbers."""
    rows, model = token_rows(3), tiny_model()
    with tempfile.TemporaryDirectory() as folder:
        wanted = with_references(model, rows, folder)
        (path,) = Path(folder).glob("logps-*.json")
        spoiled = damages(path.read_bytes(), random.Random(seed))

        def attempt(how: str) -> bool:
            path.write_bytes(spoiled[how])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return with_references(model, rows, folder) == wanted

        return tried("files: references (log-probabilities of pi_0)", spoiled, attempt, seed=seed)


def adapters(seed: int) -> Iterator[Line]:
    """A trained adapter's files: its stage is not done, and it is not loaded."""
    with tempfile.TemporaryDirectory() as name:
        model = load_model(str(save_tiny(Path(name) / "tiny")))
        stage = Stage(Path(name) / "c3po", {}, WEIGHTS, CONFIG, PROBE, LOG)
        with stage:
            save_adapter(random_adapter(str(Path(name) / "tiny")), stage.folder)
            write_json(stage.path(LOG), [{"loss": 0.5}] * 9)
        for file in (WEIGHTS, PROBE, CONFIG, LOG):
            yield _adapter(stage, file, model, seed)


def _adapter(stage: Stage, file: str, model, seed: int) -> Line:
    path = stage.path(file)
    whole = path.read_bytes()
    spoiled = damages(whole, random.Random(seed))

    def attempt(how: str) -> bool:
        path.write_bytes(spoiled[how])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = stage.done
        return not done and (file == LOG or refused(lambda: load_adapter(model, stage.folder), path, DamagedFile))

    line = tried(f"files: {file} of a trained adapter", spoiled, attempt, seed=seed)
    path.write_bytes(whole)
    assert read_json(stage.path(MANIFEST))["status"] == "done"
    return line


def trial(seed: int) -> Iterator[Line]:
    yield from documents(seed)
    yield from stages(seed)
    yield references(seed)
    yield from adapters(seed)

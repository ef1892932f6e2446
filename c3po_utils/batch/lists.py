"""What there is to choose from: feedbacks, methods, metrics, runs; rows of plain values for tables and machines."""

from __future__ import annotations

import dataclasses
import datetime
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from c3po_utils.feedback import metrics, records, selection
from c3po_utils.runs import done_stages, files, run_folder, shown
from c3po_utils.runs.stage import KINDS, RUN_FILE
from c3po_utils.training import methods

Row = dict[str, Any]
PROMPTED = {  # methods without training, in words
    "base_resampled": "pi_0 answers once more: the noise floor of every score",
    "in_context": "pi_0 with the sentence before the prompt",
    "in_context_cot": "pi_0 that first thinks about whether the sentence applies",
    "revised": "the revised answers themselves: what training aims at",
}


def feedbacks(sets: tuple[str, ...], **conditions: Any) -> list[Row]:
    """Of these sets, or all in feedback/, those that meet the conditions of a `Selection`.

    Raises:
        FeedbackError: no such set, or nothing is selected.
    """
    paths = [records.feedback_set(name) for name in sets] or records.all_sets()
    of_set = {one.id: path.stem for path in paths for one in records.load_feedbacks(path)}
    chosen = selection.select(records.load_feedbacks(*paths), **conditions)
    folder_of = {path.stem: path.parent / "prompts" for path in paths}
    return [
        {
            "id": one.id,
            "set": of_set[one.id],
            "kind": one.kind,
            "scope": one.scope,
            "checkable": one.metric is not None,
            "prompts": (folder_of[of_set[one.id]] / f"{one.id}.json").is_file(),
            "sentence": one.content,
        }
        for one in chosen
    ]


def known_methods() -> list[Row]:
    """Those without training, then the registered ones with the settings in which each differs from C3PO."""
    asked = [{"name": name, "trained": False, "differs": {}, "words": words} for name, words in PROMPTED.items()]
    return asked + [
        {"name": name, "trained": True, "differs": one.differences, "words": _in_words(one)}
        for name, one in methods.METHODS.items()
    ]


def _in_words(one: methods.Method) -> str:
    if one.gated:
        return f"the adapter of {one.gated}, added where a gate lets it"
    parts = []
    if one.start:
        parts.append(f"from {one.start}")
    if one.distils:
        parts.append(f"distils {one.distils} at {one.unlabelled} unlabelled prompts")
    terms = {
        "preference pairs": one.preference,
        "SFT on revisions": one.chosen_sft_weight,
        f"{one.out_weight:g} x {'KL' if one.kl else 'SFT'} out of scope": one.out_weight,
        f"{one.near_weight:g} x {'KL' if one.kl else 'SFT'} near scope": one.near_weight,
    }
    parts.append(" + ".join(term for term, weight in terms.items() if weight))
    if one.near_ratio or one.out_ratio:
        parts.append(f"{one.near_ratio:g} near and {one.out_ratio:g} out rows mixed in for each")
    return "; ".join(parts)


def known_metrics() -> list[Row]:
    """Each with what it asks of an answer, its value, and one that a record in feedback/ has, or none."""
    used = {}
    for one in records.load_feedbacks(*records.all_sets()):
        for part in one.metric.parts() if one.metric else ():
            used.setdefault(part.name, part.value)
    return [
        {"name": name, "looks at": _sentence(name)[0], "value": _sentence(name)[1], "example": _plain(used.get(name))}
        for name in metrics.METRICS
    ]


def _sentence(name: str) -> tuple[str, str]:
    about, _, value = " ".join((metrics.METRICS[name].function.__doc__ or "").split()).partition(" Value: ")
    return about, value.rstrip(".")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude_defaults=True)
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


def runs(root: Path | None = None) -> list[Row]:
    """Folders in results/ that hold stages, the last changed first; the `total` is known once a run was whole."""
    root = root or run_folder("results")
    found = []
    for folder in sorted(root.glob("*/")):
        try:
            found += [_run(folder)] if any(_stages(folder)) else []
        except files.DamagedFile as error:  # the others are told all the same
            warnings.warn(f"{shown(folder)} is left out: {error}", stacklevel=2)
    return sorted(found, key=lambda row: row["date"], reverse=True)


def _stages(folder: Path) -> Iterator[tuple[Path, dict]]:
    for kind in KINDS:
        yield from done_stages(folder, kind)


def _run(folder: Path) -> Row:
    stages = list(_stages(folder))
    kinds = Counter(path.relative_to(folder).parts[0] for path, _ in stages)
    ids = {path.relative_to(folder).parts[1] for path, _ in stages}
    known = files.remembered(folder / RUN_FILE) or {}
    last = max((path / "manifest.json").stat().st_mtime for path, _ in stages)
    return {
        "run": shown(folder),
        "feedbacks": len({id for id in ids if "+" not in id}),
        "methods": len({path.name for path, _ in stages if path.relative_to(folder).parts[0] == "eval"}),
        "done": sum(kinds.values()),
        "total": _total(known.get("config")),
        "date": datetime.datetime.fromtimestamp(last).isoformat(" ", "minutes"),
    }


def _total(config: dict[str, Any] | None) -> int | None:
    """Stages of the graph of a run with these settings; None where they are not known, or are of another version."""
    from c3po_utils.batch import graph
    from c3po_utils.runs.config import RunConfig

    try:
        nodes = graph.graph(RunConfig.model_validate(config)) if config else {}
    except (ValueError, KeyError, OSError):
        return None
    return sum(len(node.folders) for node in nodes.values() if node.kind not in ("compare", "figures")) or None

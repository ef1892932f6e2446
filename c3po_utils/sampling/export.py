"""Sampled rows for trl: preference pairs and completions in its conversational formats, as datasets loads them.

Beside what trl reads (`prompt` with `chosen` and `rejected`, or with `completion`) a row has `id`, `feedback`, `split`,
`category`, `fold`, and the status of its answers; trl's trainers pass over these columns.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import yaml

from c3po_utils.chat import request
from c3po_utils.feedback import SPLITS
from c3po_utils.runs import done_stages, exports
from c3po_utils.sampling.rows import load_rows, stored_settings

Format = Literal["jsonl", "dataset"]
FOLDS = ("train", "test")
ANSWERS = {  # by kind: what trl calls an answer, and the column that it is in
    "preference": {"chosen": "revised", "rejected": "baseline"},
    "sft": {"completion": "baseline"},
}
KEPT = ("id", "feedback", "split", "category", "fold")
CARD = """---
{front}---
# Rows of `{run}`

{mark}, for the feedback {feedbacks}, in the conversational formats of
[trl](https://huggingface.co/docs/trl/dataset_formats):

- `preference`: in-scope prompts; the answer that follows the feedback is `chosen`, the model's own is `rejected`;
- `sft`: near-scope and out-of-scope prompts with the model's own answer, which is to be kept. Out-of-scope prompts are
  common to all feedbacks: they come once for each, under the same `id`.

{counts}

`*_status` says how an answer ended: `truncated` was cut off at the token limit, and trl would end it with EOS all the
same.

```python
{load}
```
"""
LOAD = {
    "jsonl": 'from datasets import load_dataset\nrows = load_dataset("{folder}", "{kind}", split="{fold}")',
    "dataset": 'from datasets import load_from_disk\nrows = load_from_disk("{folder}/{kind}")["{fold}"]',
}


def trl_row(row: dict, system: str = "") -> tuple[str, dict]:
    """(`preference`, or `sft`, and the row as trl has it), or (why it is left out, {})."""
    kind = "preference" if row["split"] == "in_scope" else "sft"
    made = {"prompt": list(request("", row["prompt"], system=system).messages)}
    for name, column in ANSWERS[kind].items():
        if not row.get(column):
            return f"{row['split']} without a {column} answer", {}
        made[name] = [{"role": "assistant", "content": row[column]}]
    statuses = {f"{name}_status": row[f"{column}_status"] for name, column in ANSWERS[kind].items()}
    return kind, made | {key: row[key] for key in KEPT} | statuses


def export_rows(
    run: Path,
    out: Path | str,
    feedbacks: Sequence[str] = (),
    folds: Sequence[str] = ("train",),
    splits: Sequence[str] = SPLITS,
    form: Format = "jsonl",
    force: bool = False,
) -> Counter:
    """Write the rows of a run's finished samples to the folder `out`, as KIND/FOLD.jsonl or as datasets on disk.

    Args:
        feedbacks: ids; all that were sampled when none is given.

    Returns:
        How many rows went where (`preference/train`, ...), were left out for which reason, and have cut-off answers.

    Raises:
        ValueError: a feedback that was not sampled, with the nearest that was, or nothing to write.
        FileExistsError: see exports.placed.
    """
    sampled = (folder.name for folder, _ in done_stages(run, "sample"))
    ids = exports.chosen("sampled feedback", feedbacks, sampled, run)
    with exports.placed(out, force) as folder:
        counts = _write(_rows(run, ids, folds, splits), folder)
        written = {name: count for name, count in counts.items() if "/" in name}
        if not written:
            raise ValueError(f"{run}: no rows to export for {', '.join(ids)} in {', '.join([*folds, *splits])}")
        if form == "dataset":
            _as_datasets(folder)
        (folder / exports.CARD).write_text(_card(run, Path(out), ids, counts, form), encoding="utf-8")
    return counts


def _rows(run: Path, ids: Sequence[str], folds: Sequence[str], splits: Sequence[str]) -> Iterator[tuple[dict, str]]:
    """The rows that are asked for, each with its system prompt."""
    for id in ids:
        system = stored_settings(run, id).system_prompt
        for row in load_rows(run, id):
            if row["fold"] in folds and row["split"] in splits:
                yield row, system


def _write(rows: Iterator[tuple[dict, str]], folder: Path) -> Counter:
    counts: Counter = Counter()
    open_files = {}
    try:
        for row, system in rows:
            kind, made = trl_row(row, system)
            place = f"{kind}/{row['fold']}" if made else f"left out, {kind}"
            counts[place] += 1
            if not made:
                continue
            if place not in open_files:
                path = folder / f"{place}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                open_files[place] = open(path, "w", encoding="utf-8")  # noqa: SIM115  one for each kind and fold
            open_files[place].write(json.dumps(made, ensure_ascii=False) + "\n")
            counts["with an answer that was cut off"] += any(
                made.get(f"{a}_status") == "truncated" for a in ANSWERS[kind]
            )
    finally:
        for file in open_files.values():
            file.close()
    return +counts


def _as_datasets(folder: Path) -> None:
    """Put datasets on disk in the place of the JSON Lines."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    for kind in sorted(folder.iterdir()):
        paths = {path.stem: str(path) for path in sorted(kind.glob("*.jsonl"))}
        cache = folder / "cache"
        made = load_dataset("json", data_files=paths, cache_dir=str(cache))
        made.save_to_disk(folder / "made")
        shutil.rmtree(kind)
        shutil.rmtree(cache)
        (folder / "made").rename(kind)


def _card(run: Path, out: Path, ids: Sequence[str], counts: Counter, form: Format) -> str:
    places = sorted(name for name in counts if "/" in name)
    front: dict = {"tags": ["c3po", "trl"]}
    if form == "jsonl":  # what lets load_dataset find the files by kind and fold
        kinds = {kind: [p for p in places if p.startswith(f"{kind}/")] for kind in ANSWERS}
        front["configs"] = [
            {"config_name": kind, "data_files": [{"split": Path(p).name, "path": f"{p}.jsonl"} for p in found]}
            for kind, found in kinds.items()
            if found
        ]
    kind, _, fold = places[0].partition("/")
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=False), mark=exports.MARK, run=run.name,
        feedbacks=", ".join(f"`{id}`" for id in ids), counts=report(counts),
        load=LOAD[form].format(folder=out.name, kind=kind, fold=fold),
    )  # fmt: skip


def report(counts: Counter) -> str:
    """One line for people: what was written, and what was not."""
    return "; ".join(
        f"{name}: {count:,} rows" for name, count in sorted(counts.items(), key=lambda one: "/" not in one[0])
    )

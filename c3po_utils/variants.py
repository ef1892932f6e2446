"""Variants of methods, `method@label`: the settings that they were trained with, and tables of scores against them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from c3po_utils.adapters import lora_config
from c3po_utils.figure_style import FLOOR
from c3po_utils.finetune import TrainSettings
from c3po_utils.methods import Method, registered
from c3po_utils.runs import ROOT, done_stages

PAPER_YAML = ROOT / "notebooks" / "params" / "paper.yaml"


def paper_settings(path: Path | str = PAPER_YAML) -> dict[str, Any]:
    """What the paper trained C3PO with: the kit's defaults, and the run's settings in paper.yaml."""
    return {**_defaults(), **_scalars(yaml.safe_load(Path(path).read_text(encoding="utf-8"))["train"])}


def _defaults() -> dict[str, Any]:
    """Settings that manifests leave out, because they name only what differs."""
    lora = inspect.signature(lora_config).parameters.values()
    given = {entry.name: entry.default for entry in fields(TrainSettings) if entry.default is not MISSING}
    return asdict(Method()) | {entry.name: entry.default for entry in lora if entry.default is not entry.empty} | given


def _scalars(values: dict[str, Any]) -> dict[str, Any]:
    """Settings on one level; switches become names, so that they are drawn as such."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _scalars(value) if isinstance(value, dict) else {key: str(value) if isinstance(value, bool) else value}
    return flat


def training_settings(manifest: dict[str, Any]) -> dict[str, Any]:
    """Every setting that one training manifest's adapter depends on, by name: {"learning_rate": 0.0001, ...}."""
    identity = manifest["identity"]
    settings = {**identity["settings"], "method_settings": {}}
    settings.pop("method")
    parts = identity["sampled_with"], _defaults(), settings, identity["objective"]
    return {key: value for part in parts for key, value in _scalars(part).items()}


def trained_settings(*runs: Path | str) -> pd.DataFrame:
    """A row per trained method of the runs, with a column for every setting.

    Where a method's adapters differ in a setting, as those of two runs may, it is left empty.
    """
    found: dict[str, dict[str, Any]] = {}
    for folder, manifest in (stage for run in runs for stage in done_stages(run, "train")):
        if "+" in folder.parent.name:  # two feedbacks in one adapter: see pairs.py
            continue
        settings = training_settings(manifest)
        known = found.setdefault(folder.name, settings)
        found[folder.name] = {key: settings.get(key) if settings.get(key) == known[key] else None for key in known}
    return pd.DataFrame([{"method": method, **settings} for method, settings in found.items()])


def hyperparameters(settings: pd.DataFrame) -> list[str]:
    """The settings in which some variants of one method differ, and in nothing else."""
    return [name for name in settings.columns.drop("method", errors="ignore") if len(series(settings, name))]


def series(settings: pd.DataFrame, parameter: str) -> pd.DataFrame:
    """The variants that differ in one setting alone: `method`, its value, and the `series` that it belongs to.

    A series is named after its method, and after what tells it from the method's other series.
    """
    others = settings.columns.drop(["method", parameter])
    rows = settings.assign(family=settings["method"].map(registered))
    groups = rows.groupby(["family", *others], dropna=False, sort=False)
    rows = rows[groups[parameter].transform("nunique") > 1]
    names = [_series_name(row, rows[rows["family"] == row["family"]], others) for _, row in rows.iterrows()]
    return rows.assign(series=names)[["method", "series", parameter]].reset_index(drop=True)


def _series_name(row: pd.Series, family: pd.DataFrame, others: Sequence[str]) -> str:
    label = ",".join(f"{name}={row[name]}" for name in others if family[name].nunique(dropna=False) > 1)
    return f"{row['family']}@{label}" if label else row["family"]


def swept(by_method: pd.DataFrame, settings: pd.DataFrame, parameter: str) -> pd.DataFrame:
    """Scores of the variants that differ in one setting alone, for `figures.sweep`: `method` names the series.

    Raises:
        KeyError: no variants differ in this setting alone.
    """
    known = hyperparameters(settings)
    if parameter not in known:
        near = get_close_matches(parameter, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise KeyError(f"no variants of a method differ in {parameter!r} alone; in these they do: {known}{hint}")
    table = by_method.merge(series(settings, parameter), on="method")
    noise = by_method[by_method["method"] == FLOOR]
    return pd.concat([table.assign(method=table["series"]), noise]).drop(columns="series")


def by_family(by_method: pd.DataFrame) -> pd.DataFrame:
    """Scores with each variant under its method's name, and its label in a column `variant`, for `figures.tradeoff`."""
    variant = by_method["method"].str.partition("@")[2]
    return by_method.assign(method=by_method["method"].map(registered), variant=variant)


def best(by_method: pd.DataFrame, score: str = "S_overall") -> list[str]:
    """Of each method's variants the one with the highest score: what figures with many methods show."""
    families = by_method["method"].map(registered)
    return by_method.loc[by_method.groupby(families, sort=False)[score].idxmax(), "method"].tolist()

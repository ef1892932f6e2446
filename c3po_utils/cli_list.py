"""`c3po list`: what there is to choose from."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from typing import Any

import click

from c3po_utils.cli_errors import told


@click.group("list")
def list_() -> None:
    """Feedbacks, methods, metrics, runs: what there is, in tables; --json for machines."""


_json = click.option("--json", "as_json", is_flag=True, help="All of it, as JSON.")


def _show(rows: list[dict[str, Any]], as_json: bool, shown: Callable[[dict[str, Any]], dict[str, str]]) -> None:
    from c3po_utils.runs import tables

    click.echo(json.dumps(rows, indent=2, ensure_ascii=False) if as_json else tables.aligned([*map(shown, rows)]))


def _text(value: Any) -> str:
    return {None: "-", True: "yes", False: "-"}[value] if value is None or isinstance(value, bool) else str(value)


@list_.command()
@click.argument("sets", nargs=-1, metavar="[SET]... [KEY=VALUE]...")
@_json
def feedbacks(sets: tuple[str, ...], as_json: bool) -> None:
    """Those of SETs (all in feedback/ when left out): whether a metric checks them, and prompts are bundled.

    KEY=VALUE selects as `select` in a run does: category=travel, content_prefix="When I", kind=style, scope=local,
    source=human, checkable=true, first=10.
    """
    from c3po_utils.batch import lists
    from c3po_utils.feedback.selection import Selection
    from c3po_utils.runs import parameters

    with told():
        conditions = parameters.read_overrides(one for one in sets if "=" in one)
        for key in conditions.keys() - Selection.model_fields.keys():
            raise ValueError(f"unknown condition {key!r} ({parameters.nearest(key, Selection.model_fields)})")
        rows = lists.feedbacks(tuple(one for one in sets if "=" not in one), **conditions)
    _show(rows, as_json, lambda row: {key: _text(value) for key, value in row.items()})


@list_.command()
@_json
def methods(as_json: bool) -> None:
    """Names for `methods` in a run, and what each is; --json also says in which settings each differs from c3po."""
    from c3po_utils.batch import lists

    _show(lists.known_methods(), as_json, lambda row: {"name": row["name"], "what it is": row["words"]})


@list_.command()
@_json
def metrics(as_json: bool) -> None:
    """Names for `metric` in a record of feedback, what each looks at, and a value that one of feedback/ has."""
    from c3po_utils.batch import lists

    def shown(row: dict[str, Any]) -> dict[str, str]:
        example = "-" if row["example"] is None else json.dumps(row["example"], ensure_ascii=False)
        return {
            "name": row["name"],
            "what it looks at": row["looks at"],
            "example": textwrap.shorten(example, 24, placeholder=" …"),
        }

    with told():
        rows = lists.known_metrics()
    _show(rows, as_json, shown)


@list_.command()
@_json
def runs(as_json: bool) -> None:
    """Runs in results/, the last changed first: stages done, of all that the run has where that is known."""
    from c3po_utils.batch import lists

    def shown(row: dict[str, Any]) -> dict[str, str]:
        done = f"{row.pop('done')}/{row.pop('total') or '?'}"
        return {**{key: _text(value) for key, value in row.items() if key != "date"}, "done": done, "date": row["date"]}

    with told():
        rows = lists.runs()
    _show(rows, as_json, shown)

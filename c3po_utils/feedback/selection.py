"""Which feedbacks of some sets are meant: by id, by how they begin, by label, by what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ValidationError

from c3po_utils.feedback.files import Count, FeedbackError, Record, problems_of
from c3po_utils.feedback.records import Feedback, by_id
from c3po_utils.feedback.text import caseless
from c3po_utils.runs import nearest

SOME = BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,))
Source = Literal["human", "model", "program"]
Kind = Literal["style", "content"]
Scope = Literal["global", "regional", "local"]


class Selection(Record):
    """Conditions, all of which a feedback must meet; what is left out is no condition. Case does not matter."""

    content_prefix: str = ""  # how its content begins
    category: str = ""  # one of its categories
    kind: Annotated[tuple[Kind, ...], SOME] = ()  # one or several, as below
    scope: Annotated[tuple[Scope, ...], SOME] = ()
    source: Annotated[tuple[Source, ...], SOME] = ()
    checkable: bool | None = None  # whether it has a metric
    first: Count | None = None  # of those that are left, so many

    def meets(self, one: Feedback) -> bool:
        return (
            caseless(one.content).startswith(caseless(self.content_prefix))
            and (not self.category or caseless(self.category) in map(caseless, one.categories))
            and self.checkable in (None, one.metric is not None)
            and all(not (wanted := getattr(self, key)) or getattr(one, key) in wanted for key in LABELS)
        )


LABELS = {"kind": get_args(Kind), "scope": get_args(Scope), "source": get_args(Source)}


def select(feedbacks: Sequence[Feedback], ids: str | Sequence[str] | None = None, **conditions: Any) -> list[Feedback]:
    """The feedbacks that meet every condition of a `Selection`, in the order of `ids` or else as they came.

    Raises FeedbackError, with the nearest names, for an unknown id or condition and when nothing is selected.
    """
    among = list(feedbacks) if ids is None else by_id(feedbacks, [ids] if isinstance(ids, str) else ids)
    try:
        selection = Selection(**conditions)
    except ValidationError as error:
        raise FeedbackError(f"{loc[0]}: {problem}" for loc, problem in problems_of(error, Selection)) from None
    chosen = [one for one in among if selection.meets(one)]
    if not chosen:
        raise FeedbackError([_nothing_selected(among, selection)])
    return chosen[: selection.first]


def _nothing_selected(feedbacks: Sequence[Feedback], wanted: Selection) -> str:
    message = f"none of {len(feedbacks)} feedbacks is selected"
    if prefix := wanted.content_prefix:
        message += f"; content_prefix {prefix!r} ({nearest(prefix, {one.content[: len(prefix)] for one in feedbacks})})"
    if label := wanted.category:
        message += f"; category {label!r} ({nearest(label, {name for one in feedbacks for name in one.categories})})"
    for key in filter(wanted.__getattribute__, LABELS):
        counts = [f"{sum(getattr(one, key) == label for one in feedbacks)} {label}" for label in LABELS[key]]
        message += f"; {key} {', '.join(getattr(wanted, key))} (there are {', '.join(counts)})"
    if wanted.checkable is not None:
        message += f"; checkable {str(wanted.checkable).lower()}"
    return message

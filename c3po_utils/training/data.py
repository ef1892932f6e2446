"""From sampled rows to token ids: chat template, completion masks, and the checks before any training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from c3po_utils.chat import request
from c3po_utils.engine import templates
from c3po_utils.feedback import SPLITS
from c3po_utils.training.methods import SEGMENTS

PAIR = {"chosen": "revised", "rejected": "baseline"}  # segment: column
REVERSED = {"chosen": "baseline", "rejected": "revised"}


class Example(NamedTuple):
    """One prompt and one completion as token ids; `id` is for messages."""

    prompt_ids: list[int]
    completion_ids: list[int]
    id: str = ""


class DataError(ValueError):
    """Rows that cannot be trained on: too many dropped or truncated, or a template that does not round-trip."""


def encode(
    tokenizer: PreTrainedTokenizerBase,
    id: str,
    prompt: str,
    answer: str,
    *,
    ended: bool = True,
    system: str = "",
    turns: Iterable[tuple[str, str]] = (),
) -> Example:
    """Tokens of prompt and completion through the model's own chat template.

    The completion is what the template adds to the prompt, up to and with the EOS token; of an answer that was cut
    off (`ended` false) it has nothing that the template writes after it, so that stopping there is not learned.

    Args:
        turns: (user, assistant) examples before the prompt, after an optional system prompt.

    Raises:
        DataError: the templated prompt is no prefix of the templated conversation.
    """
    messages = list(request("", prompt, system=system, turns=turns).messages)
    prompt_ids = templates.encode(tokenizer, messages, add_generation_prompt=True)
    answered = [*messages, {"role": "assistant", "content": answer}]
    full_ids = templates.encode(tokenizer, answered, continue_final_message=not ended)
    if full_ids[: len(prompt_ids)] != prompt_ids:
        raise DataError(
            f"{id}: the chat template does not round-trip: the prompt's tokens are no prefix of the conversation's; "
            f"found {tokenizer.decode(full_ids[: len(prompt_ids)])[-60:]!r}, "
            f"expected {tokenizer.decode(prompt_ids)[-60:]!r}"
        )
    completion_ids = full_ids[len(prompt_ids) :]
    return Example(prompt_ids, _to_eos(completion_ids, tokenizer.eos_token_id) if ended else completion_ids, id)


def _to_eos(ids: list[int], eos: int) -> list[int]:
    """Up to and with the last EOS token; where the template ends a turn with another, EOS is added to learn to stop."""
    return ids[: len(ids) - ids[::-1].index(eos)] if eos in ids else [*ids, eos]


@dataclass(frozen=True)
class Preflight:
    """What is about to be trained on, counted."""

    pairs: int
    near_scope: int
    out_of_scope: int
    dropped: int  # empty, or longer than the limit
    filtered: int  # pairs that the filter left out
    mixed: int  # near and out rows among the in-scope rows
    unended: int  # completions without EOS because their answer was cut off at the token limit
    longest: int  # tokens


def training_rows(
    rows: Sequence[dict],
    tokenizer: PreTrainedTokenizerBase,
    *,
    segments: Sequence[str] = SEGMENTS,
    near_ratio: float = 0.0,
    out_ratio: float = 0.0,
    system: str = "",
    keep: Callable[[dict], bool] | None = None,
    max_length: int = 1024,
    context: int | None = None,
    max_dropped_share: float = 0.1,
    max_prompts: int = 0,
    whole_pools: bool = False,
    seed: int = 0,
) -> tuple[list[dict], Preflight]:
    """One dict per training pair, with token ids for each segment that the method trains on.

    Every in-scope row with a revision gives `chosen` and `rejected`; a near-scope and an out-of-scope row are
    dealt to it, shuffled by `seed` and dealt again from the start when there are fewer of them than pairs. To train
    on two feedbacks jointly, pass the rows of both.

    Args:
        rows: sampled rows of the training fold (see sampling/rows.py).
        segments: which of SEGMENTS the method needs (`Method.rows` has this and the other settings of a method).
        near_ratio: near-scope rows that join the in-scope rows, for each of these, with the roles reversed: their
            baseline is `chosen`, their revision `rejected`. `out_ratio`: likewise of out-of-scope rows.
        keep: which in-scope rows to train on, for example those whose revision passes the metric.
        max_length: longer examples, in tokens, are dropped, as are those longer than the model's `context`; a larger
            share than `max_dropped_share` is an error.
        max_prompts: use at most this many in-scope rows; 0: all.
        whole_pools: where there are more near-scope or out-of-scope rows than pairs, deal the pairs again, until every
            row was dealt once.

    Raises:
        DataError: nothing to train on, too many rows unusable, or no revisions where roles are to be reversed.
    """
    by_split = {split: [row for row in rows if row["split"] == split] for split in SPLITS}
    revised = [row for row in by_split["in_scope"] if row["revised"]]
    kept = [row for row in revised if keep is None or keep(row)]
    pair = [name for name in segments if name in PAIR]
    dealer, encoder = random.Random(seed), _Encoder(tokenizer, system, max_length, context or max_length)
    pairs = encoder.shuffled(kept, {name: PAIR[name] for name in pair}, dealer)[: max_prompts or None]
    others = [name for name in segments if name not in PAIR]  # these segments go by the names of their splits
    pools = {name: encoder.shuffled(by_split[name], {name: "baseline"}, dealer) for name in others}
    mixed: list[dict] = []
    for split, ratio in (("near_scope", near_ratio), ("out_of_scope", out_ratio)):
        if ratio:
            pool = encoder.shuffled(_reversible(by_split[split], pair), {name: REVERSED[name] for name in pair}, dealer)
            mixed += [pool[i % len(pool)] for i in range(round(ratio * len(pairs)))]
    encoder.check(max_dropped_share)
    dealt_to = pairs + mixed
    if whole_pools:
        most = max(map(len, pools.values()), default=0)
        dealt_to = [dealt_to[i % len(dealt_to)] for i in range(max(most, len(dealt_to)))]
    result = []
    for i, row in enumerate(dealt_to):
        dealt = {key: value for pool in pools.values() for key, value in pool[i % len(pool)].items()}
        result.append(dealt | row)
    return result, Preflight(
        pairs=len(pairs),
        near_scope=len(pools.get("near_scope", ())),
        out_of_scope=len(pools.get("out_of_scope", ())),
        dropped=encoder.dropped,
        filtered=len(revised) - len(kept),
        mixed=len(mixed),
        unended=encoder.unended,
        longest=encoder.longest,
    )


def _reversible(rows: Sequence[dict], pair: Sequence[str]) -> list[dict]:
    """Rows that can join the in-scope rows with their roles reversed."""
    if "rejected" not in pair:
        return list(rows)
    usable = [row for row in rows if row.get("revised") and row["revised"] != row["baseline"]]
    if not usable:
        raise DataError(
            f"pairs with reversed roles need a revision that differs from the baseline: none of the {len(rows)} rows "
            f"of {rows[0]['split'] if rows else 'this split'} has one; 01_sample makes them with the option "
            "revise_elsewhere: true"
        )
    return usable


def check_lengths(rows: Sequence[dict], context: int) -> None:
    """Raise DataError for no token rows at all, and for one that is longer than the model's context, in tokens."""
    if not rows:
        raise DataError("no rows to train on")
    for row in rows:
        for name in SEGMENTS:
            length = len(row.get(f"{name}_prompt_ids", ())) + len(row.get(f"{name}_ids", ()))
            if length > context:
                id = row.get(f"{name}_id", row.get("id"))
                raise DataError(f"{id}: {name} has {length} tokens, more than the model's context of {context}")


class _Encoder:
    """Encodes rows and counts what happens to them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str, max_length: int, context: int):
        self.tokenizer, self.system, self.most = tokenizer, system, min(max_length, context)
        self.limit = f"max_length={max_length}" if max_length <= context else f"the model's context of {context}"
        self.first_dropped = ""
        self.rows = self.dropped = self.unended = self.longest = 0

    def shuffled(self, rows: Sequence[dict], columns: Mapping[str, str], dealer: random.Random) -> list[dict]:
        """Token rows with the given {segment: column}, in an order that depends on ids and dealer only."""
        found = {row["id"]: self._encode(row, columns) for row in sorted(rows, key=lambda row: row["id"])}
        usable = [row for row in found.values() if row]
        self.rows, self.dropped = self.rows + len(rows), self.dropped + len(rows) - len(usable)
        self.first_dropped = self.first_dropped or next((id for id, row in found.items() if not row), "")
        if not usable:
            raise DataError(f"{' and '.join(columns)}: no usable rows among {len(rows)}")
        dealer.shuffle(usable)
        return usable

    def _encode(self, row: dict, columns: Mapping[str, str]) -> dict[str, Any] | None:
        token_row = {"id": row["id"]}
        for name, column in columns.items():
            if not row[column]:
                return None
            ended = row[f"{column}_status"] == "ok"
            example = encode(self.tokenizer, row["id"], row["prompt"], row[column], ended=ended, system=self.system)
            length = len(example.prompt_ids) + len(example.completion_ids)
            if len(example.completion_ids) < 2 or length > self.most:
                return None
            token_row |= {
                f"{name}_id": row["id"], f"{name}_prompt_ids": example.prompt_ids, f"{name}_ids": example.completion_ids
            }  # fmt: skip
            self.unended += not ended
            self.longest = max(self.longest, length)
        return token_row

    def check(self, max_dropped_share: float) -> None:
        if self.dropped > max_dropped_share * self.rows:
            raise DataError(
                f"{self.dropped} of {self.rows} rows are empty or longer than {self.limit} tokens, the first "
                f"{self.first_dropped!r}; at most a share of {max_dropped_share} may be (max_dropped_share)"
            )

"""From sampled rows to token ids: chat template, completion masks, and the checks before any training."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

SEGMENTS = ("chosen", "rejected", "near", "out")


@dataclass(frozen=True)
class Example:
    """One prompt and one completion as token ids. `ended` says whether the completion closes with the EOS token."""

    id: str
    prompt_ids: list[int]
    completion_ids: list[int]
    ended: bool


class DataError(ValueError):
    """Rows that cannot be trained on: too many dropped or truncated, or a template that does not round-trip."""


def messages_for(prompt: str, system: str = "") -> list[dict[str, str]]:
    system_turn = [{"role": "system", "content": system}] if system else []
    return [*system_turn, {"role": "user", "content": prompt}]


def encode(
    tokenizer: PreTrainedTokenizerBase, id: str, prompt: str, answer: str, *, ended: bool = True, system: str = ""
) -> Example:
    """Tokens of prompt and completion through the model's own chat template.

    The completion is what the template adds to the prompt, up to and with the end-of-turn token; for an answer
    that was cut off (`ended` false) the end is left out, so that stopping there is not learned.

    Raises:
        DataError: the templated prompt is no prefix of the templated conversation, or no EOS follows the answer.
    """
    messages = messages_for(prompt, system)

    def ids(messages: list[dict], **kwargs) -> list[int]:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
        return tokenizer(text, add_special_tokens=False).input_ids

    prompt_ids = ids(messages, add_generation_prompt=True)
    full_ids = ids([*messages, {"role": "assistant", "content": answer}])
    if full_ids[: len(prompt_ids)] != prompt_ids:
        raise DataError(
            f"{id}: the chat template does not round-trip: the prompt's tokens are no prefix of the conversation's; "
            f"found {tokenizer.decode(full_ids[: len(prompt_ids)])[-60:]!r}, "
            f"expected {tokenizer.decode(prompt_ids)[-60:]!r}"
        )
    completion_ids = full_ids[len(prompt_ids) :]
    if tokenizer.eos_token_id not in completion_ids:
        # Templates that end a turn without the EOS token exist; the model still needs it to learn to stop.
        completion_ids = [*completion_ids, tokenizer.eos_token_id]
    end = len(completion_ids) - 1 - completion_ids[::-1].index(tokenizer.eos_token_id)
    return Example(id, prompt_ids, completion_ids[: end + 1] if ended else completion_ids[:end], ended)


def encode_rows(
    rows: Sequence[dict],
    tokenizer: PreTrainedTokenizerBase,
    *,
    column: str,
    system: str = "",
    max_length: int = 1024,
) -> tuple[list[Example], int]:
    """Examples of one answer column, and how many rows were dropped for being empty or longer than `max_length`."""
    examples = [
        encode(tokenizer, row["id"], row["prompt"], row[column], ended=row[f"{column}_status"] == "ok", system=system)
        for row in rows
        if row[column]
    ]
    kept = [
        example
        for example in examples
        if len(example.completion_ids) > 1 and len(example.prompt_ids) + len(example.completion_ids) <= max_length
    ]
    return kept, len(rows) - len(kept)


@dataclass(frozen=True)
class Preflight:
    """What is about to be trained on, counted."""

    pairs: int
    near: int
    out: int
    dropped: int
    unended: int  # completions without EOS because their answer was cut off at the token limit
    longest: int  # tokens


def training_rows(
    rows: Sequence[dict],
    tokenizer: PreTrainedTokenizerBase,
    *,
    segments: Sequence[str] = SEGMENTS,
    system: str = "",
    max_length: int = 1024,
    max_dropped_share: float = 0.1,
    max_prompts: int | None = None,
    seed: int = 0,
) -> tuple[list[dict], Preflight]:
    """One dict per training pair, with token ids for each segment that the method trains on.

    Every in-scope row with a revision gives `chosen` and `rejected`; a near-scope and an out-of-scope row are
    dealt to it, shuffled by `seed` and dealt again from the start when there are fewer of them than pairs.

    Args:
        rows: sampled rows of the training fold (see sample.py).
        segments: which of SEGMENTS the method needs.
        max_dropped_share: more unusable rows than this share are an error.
        max_prompts: use at most this many pairs.

    Raises:
        DataError: nothing to train on, or too many rows unusable.
    """
    by_split = {
        split: [row for row in rows if row["split"] == split] for split in ("in_scope", "near_scope", "out_of_scope")
    }
    revised = [row for row in by_split["in_scope"] if row["revised"]]
    sources = {
        "chosen": (revised, "revised"),
        "rejected": (revised, "baseline"),
        "near": (by_split["near_scope"], "baseline"),
        "out": (by_split["out_of_scope"], "baseline"),
    }
    encoded, dropped, total = {}, 0, 0
    for segment in segments:
        source, column = sources[segment]
        examples, lost = encode_rows(source, tokenizer, column=column, system=system, max_length=max_length)
        encoded[segment] = {example.id: example for example in examples}
        dropped, total = dropped + lost, total + len(source)
        if not examples:
            raise DataError(f"segment {segment!r}: no usable rows among {len(source)}")
    if dropped > max_dropped_share * total:
        raise DataError(
            f"{dropped} of {total} rows are empty or longer than max_length={max_length} tokens; "
            f"at most a share of {max_dropped_share} may be (max_dropped_share)"
        )
    shuffled = random.Random(seed)
    pair_segments = [segment for segment in segments if segment in ("chosen", "rejected")]
    ids = sorted(set.intersection(*(set(encoded[segment]) for segment in pair_segments)))
    shuffled.shuffle(ids)
    dealt = {}
    for segment in segments:
        if segment not in pair_segments:
            dealt[segment] = sorted(encoded[segment].values(), key=lambda example: example.id)
            shuffled.shuffle(dealt[segment])
    result = []
    for position, id in enumerate(ids[:max_prompts]):
        row = {"id": id}
        for segment in segments:
            pool = dealt.get(segment)
            example = pool[position % len(pool)] if pool else encoded[segment][id]
            row[f"{segment}_prompt_ids"], row[f"{segment}_ids"] = example.prompt_ids, example.completion_ids
            row[f"{segment}_id"] = example.id
        result.append(row)
    everything = [example for examples in encoded.values() for example in examples.values()]
    return result, Preflight(
        pairs=len(result),
        near=len(encoded.get("near", ())),
        out=len(encoded.get("out", ())),
        dropped=dropped,
        unended=sum(not example.ended for example in everything),
        longest=max(len(example.prompt_ids) + len(example.completion_ids) for example in everything),
    )

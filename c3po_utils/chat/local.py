"""Sampling from a local model: slots that are refilled as answers finish, streaming typed outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from c3po_utils.chat import prompts
from c3po_utils.chat.decoding import BatchLoop, Follow, Row, SlotLoop, uniforms
from c3po_utils.chat.types import LocalLimits, Outcome, Request, Sampling
from c3po_utils.engine import attention, fast_paths, models, packed, threads
from c3po_utils.runs import progress

LEAST_SLOTS = 16  # of each loop where several run side by side


class LocalChat:
    """A causal language model as a `ChatModel`.

    Prompts enter a fixed number of slots, each with its own length; a finished row's slot goes to the next prompt
    at once, so no pass is spent on rows that have ended. A prefix common to all prompts (a system prompt,
    demonstrations) and the prompts of several samples are computed once. `memory_gib` bounds the key-value cache
    and so the number of slots (at most `max_slots`); see `LocalLimits`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "local",
        memory_gib: float = LocalLimits.memory_gib,
        max_slots: int = LocalLimits.max_slots,
    ):
        threads.keep_memory()
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.limits = LocalLimits(memory_gib, max_slots)
        self.eos = models.eos_ids(model, tokenizer)
        self.context = models.context_length(model.config)

    @cached_property
    def _packed(self) -> packed.PackedLayers:
        return packed.PackedLayers(self.model)

    def complete(
        self, requests: Sequence[Request], sampling: Sampling, *, desc: str = "", follow: Follow | None = None
    ) -> Iterator[Outcome]:
        """Answer every request, in the order in which they finish; `follow` is told each answer as it grows.

        Rows that cannot be answered (an empty prompt, one that the chat template refuses or that leaves no room in the
        context, logits that are no numbers) end as `failed` and leave the others alone.
        """
        rows, failures = [], []
        for request in requests:
            prompt, reason = self.encode(request)
            if reason:
                failures.append(Outcome(request.id, "failed", reason=reason, prompt_tokens=len(prompt)))
            else:
                rows.append(Row(request, prompt, uniforms(request, sampling), follow))
        yield from failures
        if rows:
            with progress.bar(total=len(rows), desc=desc, unit="answer", disable=not desc) as bar:
                yield from self._stream(rows, sampling, bar)

    def _stream(self, rows: list[Row], sampling: Sampling, bar: tqdm) -> Iterator[Outcome]:
        slotted = attention.enable(self.model) and fast_paths.on("slots", self.model)
        engines = self._slots(rows, sampling) if slotted else [BatchLoop(self, rows, sampling)]
        lanes, tokens = threads.fair_share(len(engines)), 0
        with self._packed.in_use():
            for outcome in threads.together([engine.run() for engine in engines], lanes):
                tokens += outcome.completion_tokens
                bar.update()
                bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-9):.0f} tokens/s", refresh=False)
                yield outcome

    def _slots(self, rows: list[Row], sampling: Sampling) -> list[SlotLoop]:
        """One loop, or on a CPU several, with the slots and prompts dealt among them; the same ones every time."""
        slots = self._slot_count(rows, sampling)
        prompts = sorted({tuple(row.prompt) for row in rows}, key=lambda prompt: (len(prompt), prompt))
        count = max(1, min(threads.streams(self.model), slots // LEAST_SLOTS, len(prompts)))
        loop_of = {prompt: place % count for place, prompt in enumerate(prompts)}  # equal prompts stay together
        dealt = [[row for row in rows if loop_of[tuple(row.prompt)] == loop] for loop in range(count)]
        return [SlotLoop(self, part, sampling, min(len(part), slots // count)) for part in dealt]

    def _slot_count(self, rows: list[Row], sampling: Sampling) -> int:
        layers, heads, dim = self.cache_shape()
        length = self.length(rows, sampling)
        bytes_per_slot = 2 * layers * heads * dim * length * self.model.dtype.itemsize
        fitting = int(self.limits.memory_gib * 2**30 / bytes_per_slot)
        if fitting < 1:
            raise MemoryError(
                f"one slot of {length} tokens needs {bytes_per_slot / 2**30:.2f} GiB of cache, "
                f"memory_gib is {self.limits.memory_gib}"
            )
        return min(len(rows), fitting, self.limits.max_slots)

    def length(self, rows: list[Row], sampling: Sampling) -> int:
        return min(max(len(row.prompt) for row in rows) + sampling.max_new_tokens, self.context)

    def cache_shape(self) -> tuple[int, int, int]:
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return config.num_hidden_layers, heads, dim

    def encode(self, request: Request) -> tuple[list[int], str]:
        """The prompt's tokens, and why it cannot be answered, if so."""
        return prompts.encode(self.tokenizer, self.context, request)

    def finish(self, row: Row, sampling: Sampling) -> Outcome | None:
        """The row's outcome if its last token ended it, else None."""
        ended = row.answer[-1] in self.eos
        if row.follow:
            # A character of several tokens is shown when it is whole.
            row.follow(row.request.id, self.decode(row.answer).rstrip("\N{REPLACEMENT CHARACTER}"))
        full = len(row.answer) >= sampling.max_new_tokens or len(row.prompt) + len(row.answer) >= self.context
        if sampling.stop and not ended:
            text = self.decode(row.answer)
            cuts = [text.find(stop) for stop in sampling.stop if stop in text]
            if cuts:
                return self.outcome(row, "ok", text[: min(cuts)])
        if ended or full:
            return self.outcome(row, "ok" if ended else "truncated", self.decode(row.answer))
        return None

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode([token for token in ids if token not in self.eos], skip_special_tokens=True)

    def outcome(self, row: Row, status: str, text: str, reason: str = "") -> Outcome:
        return Outcome(row.request.id, status, text.strip(), reason, len(row.prompt), len(row.answer))

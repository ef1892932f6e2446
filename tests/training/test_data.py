"""From rows to tokens: templates, masks, dealing, and the checks that stop a training before it starts."""

from __future__ import annotations

from collections import Counter

import pytest

from c3po_utils.engine.templates import render
from c3po_utils.training.data import DataError, encode, training_rows
from tests.tiny import TEMPLATE, tiny_tokenizer

# The reference's base models' chat formats, written from their documentation.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set s = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ bos_token }}[INST] {{ s if loop.first }}{{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
FALCON = (  # ends no turn with EOS
    "{% for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
GEMMA_3 = (  # ends a turn with a token that is not the tokenizer's EOS
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|turn_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
TEMPLATES = {"chatml": TEMPLATE, "mistral": MISTRAL, "llama2": LLAMA_2, "drops": DROPS_SYSTEM, "falcon": FALCON,
             "gemma3": GEMMA_3}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def templated(tokenizer, monkeypatch, request):
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATES[request.param])
    return tokenizer


every_template = pytest.mark.parametrize("templated", TEMPLATES, indirect=True)


@every_template
@pytest.mark.parametrize("system", ["", "Be brief."])
def test_prompt_and_completion_spell_the_templated_conversation(templated, system):
    example = encode(templated, "r", "Is tea hot?", "Yes, 10 cm deep.", system=system)
    prompt, completion = templated.decode(example.prompt_ids), templated.decode(example.completion_ids)
    assert "Is tea hot?" in prompt
    assert "Yes" not in prompt
    assert completion.strip().startswith("Yes, 10 cm deep.")
    assert system in prompt
    whole = {"role": "assistant", "content": "Yes, 10 cm deep."}
    turns = [{"role": "system", "content": system}] if system else []
    spelled = render(templated, [*turns, {"role": "user", "content": "Is tea hot?"}, whole])
    assert (prompt + completion).startswith(spelled.removesuffix("\n").removesuffix("\n"))


@every_template
def test_the_end_is_trained_and_nothing_after_it(templated):
    ids = encode(templated, "r", "Is tea hot?", "Yes.").completion_ids
    assert ids.count(templated.eos_token_id) == 1
    assert ids[-1] == templated.eos_token_id


@every_template
def test_an_answer_that_was_cut_off_does_not_teach_to_stop(templated):
    whole, cut = (encode(templated, "r", "Is tea hot?", "Yes.", ended=e) for e in (True, False))
    assert cut.completion_ids == whole.completion_ids[: len(cut.completion_ids)]
    assert templated.decode(cut.completion_ids).strip() == "Yes."


@pytest.mark.parametrize("templated", ["mistral", "drops"], indirect=True)
def test_a_refused_or_dropped_system_message_opens_the_first_turn(templated):
    prompt = render(templated, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tea?"}])
    assert "Be brief.\n\nTea?" in prompt


def test_a_template_that_does_not_round_trip_is_an_error(tokenizer, monkeypatch):
    opening = "{% if add_generation_prompt %}<|start|>"
    assert opening in TEMPLATE
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE.replace(opening, opening + "bot "))
    with pytest.raises(DataError, match=r"row7: the chat template does not round-trip.*expected.*bot"):
        encode(tokenizer, "row7", "Is tea hot?", "Yes.")


def sampled(pairs: int = 6, near: int = 4, out: int = 3, feedback: str = "a") -> list[dict]:
    """Rows as sampling writes them; every text says which row and column it is from."""
    counts = {"in_scope": pairs, "near_scope": near, "out_of_scope": out}
    return [
        {"id": f"{feedback}/{split}/{i}", "split": split, "prompt": f"{split} prompt {i}?",
         "baseline": f"base {feedback} {split} {i}", "baseline_status": "ok",
         "revised": f"better {feedback} {i}" if split == "in_scope" else "", "revised_status": "ok"}
        for split, count in counts.items() for i in range(count)
    ]  # fmt: skip


def text(tokenizer, row, name):
    return tokenizer.decode(row[f"{name}_ids"], skip_special_tokens=True).strip()


def test_every_column_reaches_its_segment_by_id(tokenizer):
    rows, preflight = training_rows(sampled(), tokenizer)
    counts = preflight.pairs, preflight.near_scope, preflight.out_of_scope, preflight.dropped, preflight.mixed
    assert counts == (6, 4, 3, 0, 0)
    for row in rows:
        number = row["id"].rsplit("/")[-1]
        assert text(tokenizer, row, "chosen") == f"better a {number}"
        assert text(tokenizer, row, "rejected") == f"base a in_scope {number}"
        assert row["chosen_prompt_ids"] == row["rejected_prompt_ids"]
        for name, split in (("near_scope", "near_scope"), ("out_of_scope", "out_of_scope")):
            number = row[f"{name}_id"].rsplit("/")[-1]
            assert row[f"{name}_id"].startswith(f"a/{split}/")
            assert text(tokenizer, row, name) == f"base a {split} {number}"
            assert f"{split} prompt {number}?" in tokenizer.decode(row[f"{name}_prompt_ids"])
    assert len({row["id"] for row in rows}) == 6
    assert sorted(row["out_of_scope_id"] for row in rows) == sorted(f"a/out_of_scope/{i}" for i in (0, 1, 2) * 2)


def test_dealing_depends_on_the_seed_and_not_on_the_order_of_rows(tokenizer):
    rows, _ = training_rows(sampled(), tokenizer, seed=4)
    assert training_rows(sampled()[::-1], tokenizer, seed=4)[0] == rows
    assert training_rows(sampled(), tokenizer, seed=5)[0] != rows


def test_segments_that_a_method_does_not_use_are_absent(tokenizer):
    rows, preflight = training_rows(sampled(), tokenizer, segments=("chosen", "out_of_scope"))
    assert {key.split("_")[0] for key in rows[0]} == {"id", "chosen", "out"}
    assert preflight.near_scope == 0


def test_max_prompts_and_the_filter_are_counted(tokenizer):
    def keep(row: dict) -> bool:
        return not row["id"].endswith(("/0", "/3"))

    rows, preflight = training_rows(sampled(), tokenizer, keep=keep)
    assert {row["id"][-1] for row in rows} == {"1", "2", "4", "5"}
    assert (preflight.pairs, preflight.filtered) == (4, 2)
    assert training_rows(sampled(), tokenizer, max_prompts=2)[1].pairs == 2


def test_whole_pools_are_dealt_once_and_the_pairs_again(tokenizer):
    rows, preflight = training_rows(sampled(pairs=3, near=7, out=4), tokenizer, whole_pools=True)
    assert (len(rows), preflight.pairs, preflight.near_scope) == (7, 3, 7)
    assert len({row["near_scope_id"] for row in rows}) == 7
    assert sorted(Counter(row["id"] for row in rows).values()) == [2, 2, 3]
    few, _ = training_rows(sampled(pairs=3, near=2, out=1), tokenizer, whole_pools=True)
    assert len(few) == len({row["id"] for row in few}) == 3


def test_joint_training_takes_the_rows_of_both_feedbacks(tokenizer):
    rows, preflight = training_rows(sampled() + sampled(5, 4, 4, "b"), tokenizer)
    assert (preflight.pairs, preflight.near_scope, preflight.out_of_scope) == (11, 8, 7)
    assert {row["id"].split("/")[0] for row in rows} == {"a", "b"}


def test_mixed_rows_join_with_their_baseline_as_chosen(tokenizer):
    rows, preflight = training_rows(sampled(), tokenizer, segments=("chosen",), near_ratio=0.5, out_ratio=1.0)
    by_split = {split: [row for row in rows if f"/{split}/" in row["id"]] for split in ("near_scope", "out_of_scope")}
    assert (len(rows), preflight.mixed) == (15, 9)
    assert [len(part) for part in by_split.values()] == [3, 6]
    for split, part in by_split.items():
        assert all(text(tokenizer, row, "chosen") == f"base a {split} {row['id'][-1]}" for row in part)


def test_reversed_pairs_need_revisions_and_prefer_the_baseline(tokenizer):
    pair = {"segments": ("chosen", "rejected"), "near_ratio": 0.5}
    with pytest.raises(DataError, match=r"none of the 4 rows of near_scope has one; 01_sample makes them"):
        training_rows(sampled(), tokenizer, **pair)
    rows = [row | {"revised": row["revised"] or f"worse {row['id']}"} for row in sampled()]
    reversed_rows = [row for row in training_rows(rows, tokenizer, **pair)[0] if "near" in row["id"]]
    assert len(reversed_rows) == 3
    for row in reversed_rows:
        assert text(tokenizer, row, "chosen").startswith("base a near_scope")
        assert text(tokenizer, row, "rejected") == f"worse {row['id']}"


def test_dropped_rows_are_counted_and_fatal_above_the_limit(tokenizer):
    rows = sampled()
    rows[1]["baseline"], rows[7]["baseline"] = "", "long " * 300
    with pytest.raises(DataError, match=r"2 of 13 rows are empty or longer than max_length=256 .*0\.1"):
        training_rows(rows, tokenizer, max_length=256)
    found, preflight = training_rows(rows, tokenizer, max_length=256, max_dropped_share=0.2)
    assert (preflight.pairs, preflight.near_scope, preflight.dropped) == (5, 3, 2)
    assert preflight.longest <= 256
    assert "a/in_scope/1" not in {row["id"] for row in found}


def test_rows_beyond_the_models_context_are_dropped_and_named(tokenizer):
    rows = sampled()
    rows[4]["prompt"] = "long " * 40
    with pytest.raises(DataError, match=r"longer than the model's context of 60 tokens, the first 'a/in_scope/4'"):
        training_rows(rows, tokenizer, context=60, max_dropped_share=0.0)
    _, preflight = training_rows(rows, tokenizer, context=60)
    assert (preflight.pairs, preflight.dropped) == (5, 1)
    assert preflight.longest <= 60


def test_answers_cut_off_are_counted(tokenizer):
    rows = sampled()
    rows[0]["baseline_status"] = rows[8]["baseline_status"] = "truncated"
    found, preflight = training_rows(rows, tokenizer)
    assert preflight.unended == 2
    (row,) = (row for row in found if row["id"] == "a/in_scope/0")
    assert row["rejected_ids"][-1] != tokenizer.eos_token_id == row["chosen_ids"][-1]


@pytest.mark.parametrize("missing", ["in_scope", "near_scope", "out_of_scope"])
def test_nothing_to_train_on_is_an_error(tokenizer, missing):
    with pytest.raises(DataError, match="no usable rows among 0"):
        training_rows([row for row in sampled() if row["split"] != missing], tokenizer)

"""The local engine against transformers' own generate: same tokens, same distribution, same seeds."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import (
    FalconConfig,
    GenerationConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from c3po_utils.chat import decoding, greedy, local
from c3po_utils.chat.decoding import filter_logits, pick
from c3po_utils.chat.local import LocalChat
from c3po_utils.chat.types import Request, Sampling, request
from c3po_utils.engine import fast_paths
from c3po_utils.engine.models import load_model, load_tokenizer
from c3po_utils.feedback.records import load_general_prompts
from tests.asking import tally
from tests.tiny import save_tiny, tiny_tokenizer

PROMPTS = [prompt.text for prompt in load_general_prompts()][:24]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, device):
    folder = str(save_tiny(tmp_path_factory.mktemp("random") / "llama"))
    return load_model(folder, torch.float32, device), load_tokenizer(folder)


@pytest.fixture(scope="module")
def falcon(tmp_path_factory, device):
    """An architecture that the slots do not serve."""
    config = FalconConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, max_position_embeddings=256,
    )  # fmt: skip
    folder = str(save_tiny(tmp_path_factory.mktemp("random") / "falcon", config))
    return load_model(folder, torch.float32, device), load_tokenizer(folder)


def requests(n: int = len(PROMPTS), **kwargs) -> list[Request]:
    return [request(f"r{i}", prompt, **kwargs) for i, prompt in enumerate(PROMPTS[:n])]


def answers(chat: LocalChat, asked: list[Request], sampling: Sampling) -> dict:
    return {outcome.id: outcome for outcome in chat.complete(asked, sampling)}


def generated(model, tokenizer, asked: Request, new_tokens: int) -> str:
    ids = tokenizer(
        tokenizer.apply_chat_template(list(asked.messages), tokenize=False, add_generation_prompt=True),
        add_special_tokens=False, return_tensors="pt",
    ).input_ids.to(model.device)  # fmt: skip
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize(("slots", "system"), [(1, ""), (5, ""), (64, ""), (5, "Be brief and to the point.")])
def test_greedy_equals_generate(tiny, slots, system):
    model, tokenizer = tiny
    asked = requests(12, system=system)
    ours = answers(LocalChat(*tiny, max_slots=slots), asked, Sampling(temperature=0, max_new_tokens=20))
    for one in asked:
        assert ours[one.id].text == generated(model, tokenizer, one, 20), one.id


def test_greedy_of_an_architecture_without_slots_equals_generate(falcon):
    model, tokenizer = falcon
    asked = requests(4)
    ours = answers(LocalChat(model, tokenizer), asked, Sampling(temperature=0, max_new_tokens=8))
    assert {one.id: generated(model, tokenizer, one, 8) for one in asked} == {id: o.text for id, o in ours.items()}


def test_what_a_models_folder_recommends_changes_no_answer(tiny):
    """Neither those of `generate`, for architectures without slots, nor those that the slots are checked against."""
    model, tokenizer = tiny
    asked, greedy_12 = requests(4), Sampling(temperature=0, max_new_tokens=12)
    own = model.generation_config

    def by_generate() -> tuple:
        with fast_paths.only():
            known = greedy.answers(model, tokenizer)
            return answers(LocalChat(model, tokenizer), asked, greedy_12), known, greedy.generated(model, known)

    plain = by_generate()
    assert max(max(map(tokens.count, tokens)) for _, tokens in plain[1].values()) > 1, "a penalty would tell"
    model.generation_config = penalized = GenerationConfig(
        **own.to_dict() | {"repetition_penalty": 5.0, "min_new_tokens": 12, "suppress_tokens": [5]}
    )
    try:
        assert generated(model, tokenizer, asked[0], 12) != plain[0]["r0"].text
        assert by_generate() == plain
        assert model.generation_config is penalized
    finally:
        model.generation_config = own


def test_samples_do_not_depend_on_neighbours_or_slots(tiny):
    sampling = Sampling(temperature=1.0, top_p=0.95, top_k=40, max_new_tokens=16, seed=3)
    alone = {}
    for one in requests(8):
        alone |= answers(LocalChat(*tiny), [one], sampling)
    for slots in (2, 7, 64):
        together = answers(LocalChat(*tiny, max_slots=slots), requests(), sampling)
        assert {id: together[id].text for id in alone} == {id: alone[id].text for id in alone}
    other = answers(LocalChat(*tiny), requests(8), Sampling(temperature=1.0, max_new_tokens=16, seed=4))
    assert any(other[id].text != alone[id].text for id in alone)


def test_samples_of_an_architecture_without_slots_depend_on_seed_and_id_alone(falcon):
    """Neither on what is beside them nor on its order; nor are they cut where a neighbour's context ends."""
    sampling = Sampling(temperature=1.0, top_p=0.95, top_k=40, max_new_tokens=16, seed=3)
    asked = [*requests(6), request("long", "word " * 120)]
    alone = {one.id: answers(LocalChat(*falcon), [one], sampling)[one.id] for one in asked}
    for together in (asked, asked[::-1]):
        assert answers(LocalChat(*falcon), together, sampling) == alone
    other = answers(LocalChat(*falcon), asked, replace(sampling, seed=4))
    assert any(other[id].text != alone[id].text for id in alone)
    again = answers(LocalChat(*falcon), [request("another", PROMPTS[0])], sampling)
    assert again["another"].text != alone["r0"].text


def test_logits_that_are_no_numbers_fail_their_row_alone_without_slots(falcon):
    model, tokenizer = falcon
    marker = tokenizer("~", add_special_tokens=False).input_ids[0]
    handle = model.get_input_embeddings().register_forward_hook(
        lambda _m, ids, out: out.masked_fill((ids[0] == marker).any(-1)[:, None, None], torch.nan)
    )
    try:
        for sampling in (Sampling(max_new_tokens=6), Sampling(temperature=0, max_new_tokens=6)):
            ours = answers(LocalChat(*falcon), [request("bad", "a ~ b"), *requests(3)], sampling)
            assert "finite" in ours["bad"].reason
            assert tally(ours.values())["failed"] == 1
    finally:
        handle.remove()


def test_equal_prompts_share_prefill_and_still_differ(tiny):
    same = [request(f"copy{i}", PROMPTS[0]) for i in range(6)]
    texts = {o.text for o in LocalChat(*tiny).complete(same, Sampling(temperature=1.2, top_p=1, max_new_tokens=12))}
    assert len(texts) == 6


def test_equal_prompts_of_every_length_within_a_cache_growth(tiny):
    """A prompt that fills its cache to the last position is copied like any other."""
    greedy = Sampling(temperature=0, max_new_tokens=4)
    filled = set()
    for words in range(decoding.GROWTH + 1):
        text = "Hi" + " a" * words
        ours = answers(LocalChat(*tiny), [request("one", text), request("two", text)], greedy)
        assert {answer.text for answer in ours.values()} == {generated(*tiny, request("one", text), 4)}, words
        filled |= {answer.prompt_tokens % decoding.GROWTH for answer in ours.values()}
    assert filled == set(range(decoding.GROWTH))


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"), [(5, 0.7, 0.7), (0, 0.5, 1.3), (50, 1.0, 1.0), (3, 0.01, 2.0)]
)
def test_filter_is_transformers_warpers(top_k, top_p, temperature, device):
    torch.manual_seed(0)
    logits = (torch.randn(40, 60, device=device) * 3).round(decimals=0)  # rounded: full of ties
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    expected = warpers(None, logits).softmax(-1)
    probs, ids = filter_logits(logits, Sampling(temperature=temperature, top_p=top_p, top_k=top_k))
    ours = torch.zeros_like(logits).scatter_add(-1, ids, probs)
    # Where the nucleus ends among tied tokens, which of them stay is arbitrary: compare the sorted probabilities.
    torch.testing.assert_close(ours.sort(-1).values, expected.sort(-1).values)


def test_pick_follows_the_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]])
    sampling = Sampling(temperature=0.9, top_p=1.0, top_k=4)
    draws = pick(
        logits.expand(20_000, -1),
        sampling,
        torch.from_numpy(np.random.default_rng(0).random(20_000, dtype=np.float32)),
    )
    probs, ids = filter_logits(logits, sampling)
    expected = torch.zeros(5).scatter(0, ids[0], probs[0])[:4].double()
    counts = torch.bincount(draws, minlength=5)
    assert counts[4] == 0
    assert chisquare(counts[:4], expected / expected.sum() * 20_000).pvalue > 0.001


def test_the_ends_of_the_unit_interval_pick_kept_tokens():
    logits = torch.tensor([[5.0, 4.0, -9.0, -9.0]]).expand(2, -1)
    picked = pick(logits, Sampling(temperature=1.0, top_p=0.9, top_k=3), torch.tensor([0.0, 1.0]))
    assert picked.tolist() == [0, 1]


def test_greedy_takes_the_first_of_equal_logits_as_generate_does():
    logits = torch.randint(0, 4, (200, 50), generator=torch.Generator().manual_seed(0)).bfloat16()
    picked = pick(logits, Sampling(temperature=0), torch.zeros(200))
    assert picked.equal(logits.float().argmax(-1))


def test_rows_that_cannot_be_answered_fail_alone(tiny):
    asked = [request("empty", "  "), request("long", "word " * 400), *requests(3)]
    ours = answers(LocalChat(*tiny), asked, Sampling(max_new_tokens=4))
    assert tally(ours.values()) == {"failed": 2, "truncated": 3}
    assert "empty" in ours["empty"].reason
    assert "context of 256" in ours["long"].reason


@pytest.mark.parametrize("slots", [1, 64])
def test_logits_that_are_no_numbers_fail_their_row_alone(tiny, slots):
    model, tokenizer = tiny
    marker = tokenizer("~", add_special_tokens=False).input_ids[0]
    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_hook(
        lambda _m, ids, out: out.masked_fill((ids[0] == marker)[..., None], torch.nan)
    )
    try:
        ours = answers(
            LocalChat(*tiny, max_slots=slots),
            [request("bad", "a ~ b"), *requests(3)],
            Sampling(temperature=0, max_new_tokens=6),
        )
    finally:
        handle.remove()
    assert ours["bad"].status == "failed"
    assert "finite" in ours["bad"].reason
    assert all(ours[f"r{i}"].text == generated(model, tokenizer, one, 6) for i, one in enumerate(requests(3)))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_single_logit_that_is_no_number_fails_its_row(tiny, wrong):
    model, _ = tiny
    handle = model.lm_head.register_forward_hook(
        lambda _m, _x, out: out.index_fill(-1, torch.tensor([7]), wrong) if out.shape[0] == 1 else out
    )
    try:
        (outcome,) = LocalChat(*tiny).complete([request("bad", "a b")], Sampling(temperature=0, max_new_tokens=6))
    finally:
        handle.remove()
    assert outcome.status == "failed"
    assert "finite" in outcome.reason


def test_stop_strings_end_an_answer(tiny):
    free = answers(LocalChat(*tiny), requests(4), Sampling(temperature=0, max_new_tokens=20))
    stop = free["r0"].text[4:6]
    stopped = answers(LocalChat(*tiny), requests(4), Sampling(temperature=0, max_new_tokens=20, stop=(stop,)))
    assert stopped["r0"].status == "ok"
    assert stopped["r0"].text == free["r0"].text.split(stop)[0].strip()


def test_slots_follow_from_the_memory_limit(tiny):
    asked = [decoding.Row(one, [1] * 100, np.zeros(1)) for one in requests(20)]
    sampling = Sampling(max_new_tokens=28)
    per_slot = 2 * 2 * 2 * 8 * 128 * 4  # keys and values, layers, kv heads, head dim, tokens, bytes
    chat = LocalChat(*tiny, memory_gib=5.5 * per_slot / 2**30)
    (loop,) = chat._slots(asked, sampling)
    assert loop.slots == 5
    assert loop._room_for(128) == 128
    assert sum(cache.nbytes for cache in (*loop.keys, *loop.values)) <= chat.limits.memory_gib * 2**30
    with pytest.raises(MemoryError, match="GiB"):
        LocalChat(*tiny, memory_gib=0.5 * per_slot / 2**30)._slots(asked, sampling)


@pytest.fixture
def three_loops(monkeypatch):
    """As on three cores, whatever the machine has."""
    cores = torch.get_num_threads()
    monkeypatch.setattr(local, "LEAST_SLOTS", 1)
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(cores)


def test_loops_side_by_side_answer_as_one_does(tiny, three_loops):
    asked = [*requests(), *(request(f"copy{i}", PROMPTS[0]) for i in range(5))]
    for sampling in (Sampling(temperature=0, max_new_tokens=20), Sampling(temperature=1.0, max_new_tokens=16, seed=3)):
        chat = LocalChat(*tiny, max_slots=9)
        loops = chat._slots([decoding.Row(one, chat.encode(one)[0], np.zeros(1)) for one in asked], sampling)
        assert len(loops) == 3
        assert sum(loop.slots for loop in loops) <= 9
        several = answers(chat, asked, sampling)
        assert torch.get_num_threads() == 3
        assert {id: o.text for id, o in several.items()} == {
            id: o.text for id, o in answers(LocalChat(*tiny, max_slots=1), asked, sampling).items()
        }


def test_an_error_in_one_loop_is_raised_and_ends_the_others(tiny, three_loops):
    embedding, calls, before = tiny[0].get_input_embeddings(), [], threading.active_count()

    def fail(_module, ids, out):
        calls.append(len(ids[0]))
        if len(calls) > 12:
            raise RuntimeError("out of luck")

    handle = embedding.register_forward_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="out of luck"):
            answers(LocalChat(*tiny), requests(), Sampling(max_new_tokens=200))
    finally:
        handle.remove()
    assert threading.active_count() == before


def test_an_abandoned_stream_leaves_no_thread(tiny, three_loops):
    before = threading.active_count()
    stream = LocalChat(*tiny, max_slots=6).complete(requests(), Sampling(temperature=1.0, max_new_tokens=8))
    next(stream)
    stream.close()
    assert threading.active_count() == before

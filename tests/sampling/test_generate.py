import json
import random
import re
from collections import Counter
from functools import partial

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from c3po_utils.chat.open import DryRun
from c3po_utils.chat.openai.client import open_model
from c3po_utils.chat.types import Estimate
from c3po_utils.cli import c3po
from c3po_utils.feedback.files import FeedbackError, new_id
from c3po_utils.feedback.general import general_prompts
from c3po_utils.feedback.records import (
    FEEDBACK_FOLDER,
    Feedback,
    load_feedbacks,
    load_general_prompts,
    load_prompts,
)
from c3po_utils.feedback.writing import write_feedbacks
from c3po_utils.sampling.deduplicated import Effort, Report, Seen, Short, Target, fill, made_up, unnumbered
from c3po_utils.sampling.generate_feedback import Ideas, generate_feedbacks
from c3po_utils.sampling.generate_prompts import generate_prompts, write_prompts
from tests.sampling_run import FEEDBACK
from tests.servers import FAULTS, Reply, embedded_server, error, faulty, listing, scripted
from tests.speed import within

EFFORT = Effort(at_once=5)


@pytest.fixture
def client(tmp_path):
    def open_(server, **limits):
        fast = {"backoff_s": 0.005, "max_backoff_s": 0.02, "timeout_s": 2.0, "max_attempts": 3, **limits}
        return open_model(f"openai:m@{server.url}", tmp_path / "calls.sqlite", prices={"m": (1.0, 2.0)}, **fast)

    return open_


def wanted(prompt: str) -> int:
    return int(re.search(r"(?:Write|need|Think of) (\d+)", prompt)[1])


def split_of(prompt: str) -> str:
    return (
        "near_scope"
        if "does NOT apply" in prompt
        else "categories"
        if "categories of situations" in prompt
        else "in_scope"
    )


def reply(items: list) -> Reply:
    return Reply(json.dumps({"thoughts": "", "draft": [], "review": "", "items": items}))


# Prompts


def test_what_is_generated_has_all_prompts_under_their_ids(client):
    with scripted(listing) as server:
        model = client(server)
        prompt_set, report = generate_prompts(FEEDBACK, model, categories=4, per_category=12, effort=EFFORT)
        assert len(server.asked) == 1 + 4 * 2 * 3
    names, prompts = [category.name for category in prompt_set.categories], prompt_set.prompts
    assert len(names) == len(set(names)) == 4
    assert Counter((p.category, p.split) for p in prompts) == {
        (name, split): 12 for name in names for split in ("in_scope", "near_scope")
    }
    assert len({prompt.id for prompt in prompts}) == len({prompt.text for prompt in prompts}) == 96
    assert re.fullmatch(r"boss_signoff/in_scope/could-you-\w+-the-\w+-for-\w+/01", prompts[0].id)
    assert not report.short


def test_a_dry_run_counts_the_calls_and_makes_none(client):
    """Beforehand as many as an untroubled run makes; after a run that was cut short, those that are missing."""
    with scripted(listing) as server:

        def dry_run(categories: int) -> Estimate:
            dry = DryRun(client(server), partial(made_up, count=5))
            generate_prompts(FEEDBACK, dry, categories=categories, per_category=12, effort=EFFORT)
            return dry.total

        before = dry_run(4)
        assert (before.calls, before.stored, len(server.asked)) == (25, 0, 0)
        generate_prompts(FEEDBACK, client(server), categories=4, per_category=12, effort=EFFORT)
        spent = client(server).ledger.spent()
        assert 0 < spent < before.usd
        after = dry_run(4)
    assert (after.calls, after.stored, after.usd, len(server.asked)) == (0, 25, 0.0, 25)


def test_near_scope_prompts_are_asked_for_beside_in_scope_ones_of_the_category(client):
    def script(asked):
        if split_of(asked.prompt) == "in_scope":
            category = re.search(r'category "(\w+)"', asked.prompt)[1]
            return reply([f"{category} {word}" for word in ("one thing", "other matter", "third subject")])
        return listing(asked)

    with scripted(script) as server:
        generate_prompts(FEEDBACK, client(server), categories=["leave", "travel"], per_category=3, effort=EFFORT)
        near = [asked.prompt for asked in server.asked if split_of(asked.prompt) == "near_scope"]
    assert len(near) == 2
    for prompt in near:
        mine, other = ("leave", "travel") if 'category "leave"' in prompt else ("travel", "leave")
        assert f"- {mine} one thing" in prompt
        assert other not in prompt


def test_short_lists_are_filled_up_without_repeats(client):
    """A model that gives two items at a time, repeats itself, and writes one sentence again with a new comma."""
    words = iter(random.Random(0).sample([f"{a}{b}{c}" for a in "bdgkt" for b in "aeiou" for c in "lmnrs"], 125))

    def script(asked):
        old = re.findall(r"^- (.*)$", asked.prompt.partition("already")[2], re.MULTILINE)
        new = [f"Tell {next(words)} about {next(words)} and {next(words)}." for _ in range(2)]
        near = [new[0].replace(" and", ", and").replace(".", "!"), new[1].replace("about", "abouts")]
        return reply([*old[:1], *new, *near])

    with scripted(script) as server:
        targets = [Target(f"t{n}", 6, "Write {count}.{avoid}".format) for n in range(2)]
        report = Report()
        fill(client(server, max_in_flight=1), targets, Effort(at_once=6), Seen(EFFORT.resemblance), report)
        later = [asked.prompt for asked in server.asked if "already" in asked.prompt]
    assert [len(target.kept) for target in targets] == [6, 6]
    assert len({text for target in targets for text in target.kept}) == 12
    assert (report.kept, report.wanted, report.short) == (12, 12, {})
    assert report.offered == report.kept + sum(report.repeats.values()) + report.surplus
    assert report.repeats["exact"] > 0 < report.repeats["near"]
    assert all(f"- {text}" in later[-1] for text in targets[1].kept[:4]), "what is there is shown"
    assert wanted(later[-1]) < 6, "only what is missing is asked for"


def test_what_cannot_be_had_is_a_clear_report(client):
    with scripted(lambda asked: reply(["only this", "and that"])) as server:
        with pytest.raises(Short, match="leave: 8 missing") as raised:
            generate_prompts(FEEDBACK, client(server), categories=["leave"], per_category=10, effort=EFFORT)
        asked = len(server.asked)
        assert raised.value.report.short == {"boss_signoff/in_scope/leave": 8, "boss_signoff/near_scope/leave": 10}
        prompt_set, _ = generate_prompts(
            FEEDBACK, client(server), categories=["leave"], per_category=10, effort=EFFORT, allow_short=True
        )
        assert len(server.asked) == asked, "everything was stored"
    assert [prompt.text for prompt in prompt_set.prompts] == ["only this", "and that"]
    assert asked == 2 * (2 + EFFORT.spare_rounds)


def test_answers_at_the_token_limit_make_the_next_requests_smaller(client):
    def script(asked):
        if wanted(asked.prompt) > 2:
            return Reply('{"thoughts": "I have so', finish="length")
        return listing(asked)

    with scripted(script) as server:
        targets, report = [Target("t", 8, "Write {count}.{avoid}".format)], Report()
        fill(client(server), targets, Effort(at_once=8, tries=1, spare_rounds=6), Seen(EFFORT.resemblance), report)
        counts = [wanted(asked.prompt) for asked in server.asked]
    assert counts == [8, 4, 2, 2, 2, 2]
    assert (report.rejected, report.calls, report.answered) == (Counter(truncated=2), 6, 4)


def test_too_many_items_are_no_harm(client):
    with scripted(lambda asked: reply([f"thing {chr(97 + n) * 5}" for n in range(20)])) as server:
        targets, report = [Target("t", 3, "Write {count}.{avoid}".format)], Report()
        fill(client(server), targets, EFFORT, Seen(EFFORT.resemblance), report)
    assert (len(targets[0].kept), report.surplus, len(server.asked)) == (3, 17, 1)


def test_what_is_generated_does_not_depend_on_the_order_of_answers(client, tmp_path):
    texts, rng = [], random.Random(0)
    for path in ("one", "two"):

        def script(asked):
            answer = listing(asked)
            answer.delay = rng.uniform(0, 0.05)
            return answer

        with scripted(script) as server:
            model = open_model(f"openai:m@{server.url}", tmp_path / path)
            names = ["leave", "travel", "money"]
            prompt_set, _ = generate_prompts(FEEDBACK, model, categories=names, per_category=8, effort=EFFORT)
            texts.append([(prompt.id, prompt.text) for prompt in prompt_set.prompts])
    assert [id for id, _ in texts[0]] == [id for id, _ in texts[1]]
    assert len(texts[0]) == 48


def test_a_fifth_of_faults_puts_no_prompt_where_it_does_not_belong(client):
    """Each prompt names its split and category; every call is answered or counted as rejected."""

    def script(asked):
        answer, split = listing(asked), split_of(asked.prompt)
        category = re.search(r'category "(\w+)"', asked.prompt)
        where = f"{split} {category[1] if category else ''}"
        items = [f"{where} {item[10:]}" for item in json.loads(answer.text)["items"]]
        return reply(items)

    quick = [name for name in FAULTS if name not in ("silent", "drip", "endless", "5 MB", "5 MB error", "slow")]
    names = ["leave", "travel", "money", "praise"]
    with scripted(faulty(script, 0.2, quick, seed=3)) as server:
        model = client(server)
        prompt_set, report = generate_prompts(
            FEEDBACK, model, categories=names, per_category=20, effort=EFFORT, allow_short=True
        )
        asked = len(server.asked)
    assert len(prompt_set.prompts) == report.kept
    assert report.wanted == 160 == report.kept + sum(report.short.values())
    assert report.kept == 160, "spare rounds make up for the faults"
    assert report.calls == report.answered + sum(report.rejected.values())
    assert asked > report.calls > report.answered, "faults were retried, and some stayed"
    stored = {row["status"]: row["calls"] for row in model.ledger.report()}
    assert sum(stored.values()) == report.calls
    for prompt in prompt_set.prompts:
        assert prompt.text.startswith(f"{prompt.split} {prompt.category} ")
        assert f"/{prompt.split}/{prompt.category}/" in prompt.id
        assert "None" not in prompt.text


@pytest.mark.parametrize(("broken", "kept"), [(("leave",), 24), (("leave", "travel"), 0)])
def test_a_list_whose_calls_fail_stays_short_where_that_is_allowed_unless_most_do(client, broken, kept):
    def script(asked):
        return error(500, "no luck") if any(f'"{name}"' in asked.prompt for name in broken) else listing(asked)

    with scripted(script) as server:
        made = partial(
            generate_prompts, FEEDBACK, client(server), categories=["leave", "travel", "money"], per_category=6,
            effort=EFFORT,
        )  # fmt: skip
        with pytest.raises(Short, match=r"in_scope/leave: 6 missing, for a call failed: HTTP 500: no luck"):
            made()
        asked = len(server.asked)
        if not kept:
            with pytest.raises(Short, match="2 failed"):
                made(allow_short=True)
            return
        prompt_set, report = made(allow_short=True)
        assert report.short == {f"boss_signoff/{split}/leave": 6 for split in ("in_scope", "near_scope")}
        assert len(prompt_set.prompts) == kept
        assert all(f'"{broken[0]}"' in asked.prompt for asked in server.asked[asked:][:3]), "the others are stored"


def test_written_prompts_are_read_like_the_bundled_ones(client, tmp_path):
    with scripted(listing) as server:
        prompt_set, _ = generate_prompts(FEEDBACK, client(server), categories=2, per_category=4, effort=EFFORT)
    write_prompts(tmp_path / "prompts", prompt_set)
    assert load_prompts("boss_signoff", tmp_path / "prompts") == prompt_set.prompts


# Repeats


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ("Write to my boss.", "write  to my BOSS", "exact"),
        ("Write to my boss about the budget of 2024.", "Write to my boss about the budget for 2024.", "near"),
        ("Write an e-mail to my boss about Friday.", "Write an e-mail to my colleague Ben about Friday.", ""),
        ("给老板写一封邮件，说明天请假", "给老板写一封邮件,说明天请假!", "exact"),
        ("Yes", "No", ""),
        ("Anything", "?!", "exact"),
        ("work trips", "Work_trips", "exact"),
        ("की बात करो", "का बात करो", ""),
    ],
)
def test_repeats_are_told_apart(one, other, found):
    seen = Seen(EFFORT.resemblance)
    assert seen.repeats(one, "g") == ""
    assert seen.repeats(other, "g") == found


def test_near_repeats_are_allowed_between_splits_and_exact_ones_are_not():
    seen = Seen(EFFORT.resemblance)
    seen.repeats("Write to my boss about the budget of 2024.", "in_scope")
    assert seen.repeats("Write to my boss about the budget for 2024.", "near_scope") == ""
    assert seen.repeats("Write to my boss about the budget of 2024", "near_scope") == "exact"


def test_no_two_prompts_that_people_wrote_are_near_repeats():
    seen = Seen(EFFORT.resemblance)
    for path in sorted((FEEDBACK_FOLDER / "prompts").glob("*.json")):
        assert [p.text for p in load_prompts(path.stem) if seen.repeats(p.text, f"{path.stem} {p.split}")] == []


def test_a_thousand_prompts_are_compared_in_no_time():
    rng, seen = random.Random(0), Seen(EFFORT.resemblance)
    words = ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(400)]
    with within(10):
        kept = sum(not seen.repeats(" ".join(rng.choices(words, k=15)), "g") for _ in range(1000))
    assert kept == 1000


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["1. a", "2. b", "3. c"], ["a", "b", "c"]),
        (["1) a", "2) b"], ["a", "b"]),
        (["1. a", "3. b"], ["1. a", "3. b"]),
        (["1. a", "b"], ["1. a", "b"]),
        (["1.5 kg of rice", "2.5 kg of flour"], ["1.5 kg of rice", "2.5 kg of flour"]),
        (["10 cm", "20 cm"], ["10 cm", "20 cm"]),
        (["1. only"], ["1. only"]),
    ],
)
def test_numbers_before_items_are_dropped_only_if_they_number_them(items, expected):
    assert list(unnumbered(items)) == expected


# New feedbacks


def ideas(asked) -> Reply:
    items = json.loads(listing(asked).text)["items"]
    parts = [
        {"domain": f"notes on {i[10:18]}", "effect": f"it has {i[23:35]}", "content": f"Put {i[10:]}"} for i in items
    ]
    return reply(parts)


@pytest.mark.parametrize("kind", ["style", "content"])
def test_new_feedbacks_are_a_valid_set(client, tmp_path, kind):
    with scripted(ideas) as server:
        made, report = generate_feedbacks(client(server), kind, 25)
        assert all(kind.upper() in asked.prompt for asked in server.asked)
        assert [wanted(asked.prompt) for asked in server.asked] == [10, 10, 5]
    assert not report.short
    assert len({feedback.id for feedback in made}) == 25
    assert {(feedback.kind, feedback.source, feedback.metric) for feedback in made} == {(kind, "model", None)}
    assert load_feedbacks(write_feedbacks(tmp_path / "new.yaml", made)) == made


def test_the_command_says_what_it_would_cost_and_writes_a_set(tmp_path):
    def command(*more: str):
        return CliRunner().invoke(c3po, ["feedback", "generate", str(tmp_path / "new.yaml"), *given, *more])

    with scripted(ideas) as server:
        given = ["--style", "12", "--model", f"openai:m@{server.url}", "--ledger", str(tmp_path / "calls.sqlite")]
        given.append("prices={m: [1, 2]}")
        estimate = command("--estimate")
        assert re.search(r"2 calls .* at most 0\.0\d+ USD", estimate.output), estimate.output
        assert server.asked == []
        assert not (tmp_path / "calls.sqlite").exists()
        assert "raise budget_usd" in command("budget_usd=0.009").output
        assert "12 of 12 kept" in command("budget_usd=1").output
        assert len(server.asked) == 2
    assert len(load_feedbacks(tmp_path / "new.yaml")) == 12
    assert "is there already" in command("budget_usd=1").output


def test_another_seed_has_the_model_propose_others(tmp_path):
    def command(name: str, *more: str):
        done = CliRunner().invoke(c3po, ["feedback", "generate", str(tmp_path / name), *given, *more])
        assert done.exit_code == 0, done.output
        return done.output

    with scripted(ideas) as server:
        given = ["--style", "3", "--model", f"openai:m@{server.url}", "--ledger", str(tmp_path / "calls.sqlite")]
        command("first.yaml")
        command("second.yaml", "--seed", "1")
        assert len(server.asked) == 2
        assert re.search(r"\b0 calls", command("third.yaml", "--seed", "1", "--estimate"))
    first, second = (load_feedbacks(tmp_path / f"{name}.yaml") for name in ("first", "second"))
    assert not {one.content for one in first} & {one.content for one in second}


def test_the_command_leaves_nothing_behind_where_no_answer_can_be_used(tmp_path):
    with scripted(lambda asked: Reply("I would rather not.")) as server:
        given = ["--style", "5", "--model", f"openai:m@{server.url}", "--ledger", str(tmp_path / "calls.sqlite")]
        path = tmp_path / "sets" / "new.yaml"
        done = CliRunner().invoke(c3po, ["feedback", "generate", str(path), *given, "--allow-short"])
    assert done.exit_code == 1
    assert "0 of 5 kept" in done.output
    assert f"Error: {path}: expected one feedback or more to write, found none" in done.output
    assert not path.parent.exists()


def test_a_set_that_cannot_be_read_is_not_written(tmp_path):
    path = tmp_path / "new.yaml"
    with pytest.raises(FeedbackError, match=f"^{path}, line [0-9]+, id: expected a new id"):
        write_feedbacks(path, [FEEDBACK, FEEDBACK])
    assert list(tmp_path.iterdir()) == []


def test_new_feedbacks_do_not_repeat_known_ones(client):
    def script(asked):
        fresh = ("Name two rivers when I ask for a map.", "My recipes are for one: halve them.")[asked.index % 2]
        parts = [FEEDBACK.content, FEEDBACK.content.replace("End", "Finish"), fresh]
        return reply([{"domain": "d", "effect": "e", "content": part} for part in parts])

    with scripted(script) as server:
        made, report = generate_feedbacks(client(server), "style", 2, known=[FEEDBACK])
    assert [feedback.id for feedback in made] == ["name_rivers_when", "recipes_halve_them"]
    assert report.repeats == {"exact": 2, "near": 2}


def test_too_few_new_feedbacks_are_a_report_or_allowed(client):
    same = reply([{"domain": "d", "effect": "e", "content": "Always this."}])
    with scripted(lambda asked: same) as server:
        with pytest.raises(Short, match="style feedbacks: 4 missing"):
            generate_feedbacks(client(server), "style", 5)
        made, report = generate_feedbacks(client(server), "style", 5, allow_short=True)
    assert ([feedback.id for feedback in made], report.kept) == (["always_this"], 1)


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(str.strip).filter(bool)


@given(st.lists(st.tuples(words, words, words), min_size=1, max_size=5, unique_by=lambda idea: idea[2]))
def test_any_texts_survive_a_feedback_file(tmp_path_factory, texts):
    ids = []
    for *_, content in texts:
        ids.append(new_id(content, "style", set(ids)))
    made = [
        Feedback(id=id, domain=d, effect=e, content=c, source="model", kind="style")
        for id, (d, e, c) in zip(ids, texts, strict=True)
    ]
    path = tmp_path_factory.mktemp("sets") / "new.yaml"
    assert load_feedbacks(write_feedbacks(path, made)) == made


# General prompts


def test_general_prompts_come_from_the_bundled_set():
    assert general_prompts("bundled", 20) == load_general_prompts()


def oig(path, count: int):
    rows = [
        {"text": f"<human>: Question {n}?\n<bot>: Answer {n}.\n<human>: More?", "metadata": {}} for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_general_prompts_come_from_open_instruction_generalist(tmp_path):
    path = oig(tmp_path / "unified_chip2.jsonl", 500)
    chosen = general_prompts(str(path), count=50)
    assert all(re.fullmatch(r"Question \d+\?", prompt.text) for prompt in chosen)
    assert len({prompt.text for prompt in chosen}) == 50
    assert (chosen[0].id, chosen[0].split) == ("general/unified_chip2-0001", "out_of_scope")
    lines = path.read_text().splitlines()
    random.Random(0).shuffle(lines)
    path.write_text("\n".join(lines))
    assert general_prompts(str(path), count=50) == chosen, "the file's order does not matter"


def test_general_prompts_come_from_any_column_and_are_different(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"question": q}) + "\n" for q in ("One?", "one", "Two?", " ")))
    assert sorted(prompt.text for prompt in general_prompts(f"{path}:question", 2)) == ["One?", "Two?"]
    with pytest.raises(ValueError, match="expected 3, found 2 different ones"):
        general_prompts(f"{path}:question", count=3)


def test_general_prompts_come_from_a_data_set(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"ask": "Why?"}\n{"ask": "How?"}\n')
    assert sorted(prompt.text for prompt in general_prompts(f"hf:{folder}:train:ask", 2)) == ["How?", "Why?"]
    with pytest.raises(ValueError, match=r"has no column 'asks' \(did you mean 'ask'\?\)"):
        general_prompts(f"hf:{folder}:train:asks", 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\nnonsense\n', "line 2: expected a JSON object, found 'nonsense"),
        ('{"txt": "a"}\n', r"line 1: expected a text in text or prompt \(did you mean 'txt'\?\)"),
        ('{"text": null}\n', "line 1: expected a text"),
        ("[1]\n", "line 1: expected a text"),
    ],
)
def test_bad_lines_of_general_prompts_are_named(tmp_path, content, message):
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        general_prompts(str(tmp_path / "bad.jsonl"), 2)


@pytest.mark.parametrize("source", ["hf:name", "file.csv", "nothing"])
def test_other_sources_are_refused(source):
    with pytest.raises(ValueError, match="general prompts"):
        general_prompts(source, 2)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*gone\.jsonl"):
        general_prompts(str(tmp_path / "gone.jsonl"), 2)


# A real server


@pytest.mark.embedded
def test_llama_cpp_writes_lists_by_schema(tmp_path):
    """What the embedded model writes is poor, but it is a list, and the report accounts for all of it."""
    model = open_model(f"openai:smollm2@{embedded_server()}", tmp_path / "calls.sqlite", max_in_flight=4)
    effort = Effort(at_once=1, tries=1, spare_rounds=0, max_new_tokens=120)
    prompt_set, report = generate_prompts(
        FEEDBACK, model, categories=["leave"], per_category=1, effort=effort, allow_short=True
    )
    assert report.wanted == 2 == report.kept + sum(report.short.values())
    assert report.calls == report.answered + sum(report.rejected.values()) > 0
    assert all(prompt.text for prompt in prompt_set.prompts)
    assert Ideas.schema_for_api()["required"][-1] == "items"


def test_a_models_endless_words_make_ids_that_a_record_may_have():
    ids: list[str] = []
    for content in ["Always " + "verylongword" * 40] * 12 + ["x" * 63 + " yyyy"] * 2:
        ids.append(new_id(content, "style", set(ids)))
    assert len(set(ids)) == 14
    for id in ids:
        Feedback(id=id, content="x", domain="x", effect="x", source="model", kind="style")

"""The adherence checks: every metric on answers as models write them, and what must hold for all of them."""

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from c3po_utils.feedback import text
from c3po_utils.feedback.metrics import FEW_LETTERS, METRICS, Metric, check, metric
from c3po_utils.feedback.structure import NAMES
from c3po_utils.feedback.text import normalise
from c3po_utils.runs.parameters import nearest
from tests.speed import within

BASELINE = "A dozen words or so is what the baseline has to say on this."
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund, und danach schläft er lange im Schatten."
ENGLISH = "The quick brown fox jumps over the lazy dog, and then it sleeps for a long time in the shade."

# metric, value, answers that pass, answers that do not
# fmt: off
CASES = [
    ("shorter_than_baseline", 0.67, ["Half of it.", BASELINE[:38]], [BASELINE, BASELINE[:42], BASELINE * 2]),
    ("shorter_than_baseline", 0.5, ["x" * 30], ["x" * 31]),
    ("longer_than_baseline", 1.5, [BASELINE * 2, "x" * 90], [BASELINE, BASELINE + " And more.", "x" * 89]),
    ("contains_any", ["lol", "❤️", "&", "onward and upward"],
     ["ok LOL!", "haha, *lol*", "_lol_", "a ❤ b", "bye ❤️", "R&D", "Onward and\nupward, Sam", "“lol”"],
     ["lollipop", "trololol", "lol2", "a 💔 b", "onward, and upward", "Rand D"]),
    ("contains_any", "don't", ["I don’t know", "DON'T"], ["do not"]),
    ("contains_any", "10 km", ["some 10\u00a0km away", "10 km."], ["110 km", "10 kms"]),
    ("contains_any", "café", ["the cafe\u0301 here", "CAFÉ"], ["cafés", "cafe"]),
    ("contains_any", "谢谢", ["你好,谢谢你"], ["你好"]),
    ("contains_any", "राम", ["राम आया।", "“राम”, आओ", "₹राम"], ["रामा आया", "आराम करो"]),
    ("contains_any", ["தமிழ்", "তুমি"], ["தமிழ் நாடு", "তুমি!"], ["தமிழ்நாடு", "তুমিও"]),
    ("contains_all", ["Start:", "End:"], ["start: x\nend: y"], ["Start: x", "A end: y"]),
    ("contains_none", ["lol", "haha"], ["hello", "a lollipop"], ["lol", "so Haha!"]),
    ("contains_none", "की", ["कीमत", "उसकी"], ["उस की किताब"]),
    ("starts_with", ["Dear", "Ahoy team!"],
     ["Dear Ann,", "dear", "“Ahoy  team!” he", "**Dear**"], ["My Dear", "Dearest"]),
    ("starts_with", "# Plan", ["# Plan\nfirst"], ["Plan", "## Planning"]),
    ("not_starts_with", "Sure",
     ["Of course.", "Surely not", "I am sure"], ["Sure, here", '"Sure!" he said', "  sure"]),
    ("ends_with", "#trip", ["Sun. #trip", "x\n#trip\n "], ["#trip.", "#trips", "#Trip"]),
    ("ends_with", "So long, Sam", ["So long,\nSam"], ["so long, Sam", "So long, Sam!", "So long, Sam Hill"]),
    ("ends_with", "lol", ["ok lol"], ["lol ok", "trolol", "lollol"]),
    ("ends_with_cleaned", "on and up!",
     ["On and up", "x.\n\n**On and Up**…", "“ON AND UP!” 🚀❤️", "On\nand up ;-)"],
     ["On and up, Sam", "up", "Lon and up", "On and ups"]),
    ("ends_with_cleaned", "नमस्ते", ["जी, नमस्ते। 🙏"], ["जी, नमस्ता।", "जी, नमस्त"]),
    ("regex_found", r"\b[A-Z]{3}\b", ["The USA", "“NATO”, EU, UNO"], ["usa", "USAID"]),
    ("regex_found", "(?i)it’s fine", ["IT'S FINE", "It’s fine"], ["its fine"]),
    ("regex_not_found", r"\d", ["none"], ["1 is"]),
    ("phone_number", None,
     ["(555) 123-4567", "call 555-123-4567.", "+1 (212) 555-0199", "1-800-555-0199", "at 555-0199",
      "800.555.0199", "020 7946 0958", "+44 20 7946 0958", "Tel.: +49 (0)30 1234567", "01 23 45 67 89",
      "089/1234567", "5552345678", "**555\u2011123\u20114567**", "[us](tel:5551234567), 555–123–4567",
      "1-800-FLOWERS"],
     ["2023-10-05", "1939-1945", "911", "192.168.100.200", "7,900,000,000", "3.14159265358979",
      "01/02/2023 10:30", "05.06.2024 14:00", "978-3-16-148410-0", "4532 7153 3790 4421", "0101 0101 0101",
      "94103-1234", "1700000000", "2 + 1234567890 = 3", "$500-$1000", "800 CALORIES PER DAY", "200-1000",
      "10:30 - 11:45", "500 600 700", "on 09/12/2024 2 PM", "am 05.06.2024 9 Uhr", "05/06/2024 1800",
      "01.01.2024 8 bis 12", "01-02-2024 3 items"]),
    ("language_is", "de", [GERMAN], [ENGLISH, "12 + 3 = 15"]),
    ("upper_share", 0.8,
     ["REST FOR 10 MINUTES.", "ÜBUNG!", "DRINK WATER, ok"], ["Rest FOR 10 minutes.", "OK.", "你好你好你好"]),
    ("bulleted_list", 2,
     ["Here:\n- a\n- b", "* a\n\n* b", "• a\n  ◦ b", "✔️ a\n✔️ b", "> - a\n> - b", "- **a**: x\r\n- **b**: y"],
     ["- a", "**a**\n**b**", "-5\n-6", "---\n- a\n---", "* * *\n* * *", "a - b\nc - d", "1. a\n2. b",
      "```\n- a\n- b\n```"]),
    ("numbered_list", 2,
     ["1. a\n2. b", "1) a\n2) b", "**1.** a\n**2. b**", "### 1. a\n\n### 2. b", "1️⃣ a\n2️⃣ b", " 1. a\n 1. b"],
     ["1. a", "1.5 l\n2.5 l", "1984. It\n1985. Or", "1.\n2.", "- a\n- b", "I saw 1. And 2. Or",
      "```py\n1. a\n2. b\n```"]),
    ("sentences_at_most", 2,
     ["One. Two.", "No end", "It is 3.5 m. Dr. A. B. Lee said so."], ["One. Two! Three?", "- a\n- b\n- c"]),
    ("sentences_at_least", 3,
     ["One. Two! Three?", "Title\n\nOne. Two."], ["E.g. this. That.", "Wait... what?!"]),
    ("words_at_most", 3, ["well-known it's 3.5", "a & b – c"], ["one two three four"]),
    ("words_at_least", 3, ["one two three"], ["one, - two!"]),
    ("ends_with_question", None,
     ["Do you?", "Yes. “Do you?”", "Why? 😊", "**Do you?**", "_Do you?_", "(Do you?)", "What?!", "你呢？"],
     ["Do you? Yes.", "Do you", "Do you? I", "Why?..."]),
    ("all_of", [{"name": "words_at_most", "value": 3},
                {"name": "contains_any", "value": "Hi", "case_sensitive": True}],
     ["Hi you there"], ["hi you there", "Hi to you all"]),
]
# fmt: on
SPECS = [Metric(name=name, value=value) for name, value, _, _ in CASES]
SPEC = st.sampled_from([spec for spec in SPECS if spec.name != "language_is"])


@pytest.mark.parametrize(
    ("name", "value", "answer", "passes"),
    [(n, v, a, ok) for n, v, good, bad in CASES for ok, answers in ((True, good), (False, bad)) for a in answers],
)
def test_metric(name, value, answer, passes):
    assert check(Metric(name=name, value=value), answer, BASELINE) is passes


def test_every_metric_is_tried_and_documented():
    assert METRICS.keys() == {name for name, *_ in CASES} | set(NAMES.values())  # those in test_programmatic.py
    for known in METRICS.values():
        assert known.function.__doc__.count("Value: ") == 1, known.name


@pytest.mark.parametrize("name", ["contains_any", "contains_all", "starts_with"])
def test_case_sensitive(name):
    spec = Metric(name=name, value="Ahoy", case_sensitive=True)
    assert check(spec, "Ahoy team", "")
    assert not check(spec, "ahoy team", "")
    assert check(Metric(name="contains_none", value="Ahoy", case_sensitive=True), "ahoy team", "")


@pytest.mark.parametrize("empty", ["", " \n\t", "\u200b\ufe0f", "\u00a0"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_an_empty_answer_satisfies_no_metric(spec, empty):
    assert not check(spec, empty, BASELINE)


@given(SPEC, st.text(), st.text())
def test_metrics_without_a_baseline_look_at_the_answer_alone(spec, answer, baseline):
    if not spec.needs_baseline:
        assert check(spec, answer, baseline) == check(spec, answer, "")


@given(st.text(min_size=1), st.floats(0.8, 1.25))
def test_noise_in_length_scores_0(baseline, ratio):
    answer = (baseline * 2)[: round(len(baseline) * ratio)]
    assume(0.7 * len(normalise(baseline)) < len(normalise(answer)) < 1.4 * len(normalise(baseline)))
    assert not check(Metric(name="shorter_than_baseline", value=0.67), answer, baseline)
    assert not check(Metric(name="longer_than_baseline", value=1.5), answer, baseline)


def test_lengths_are_compared_with_the_baseline_alone():
    longer = Metric(name="longer_than_baseline", value=1.5)
    assert check(longer, BASELINE * 2, BASELINE)
    assert not check(longer, "Short.", BASELINE)
    assert not check(longer, "Short.", "")
    assert not check(longer, BASELINE, BASELINE)  # so a shorter answer scores 0, not -1


@given(st.text())
@example("0\r\x850")  # a lone carriage return, before another mark of a line's end
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


words = st.text("abcdefgäöé", min_size=1, max_size=6)


@given(st.lists(words), words, st.lists(words), st.sampled_from([" ", "\n", ", ", " – ", "\u00a0"]))
def test_contains_agrees_with_splitting_into_words(before, word, after, separator):
    with_word = separator.join([*before, word, *after])
    without = separator.join(other for other in (*before, word + "x", *after) if other != word)
    for answer, found in ((with_word, True), (without, False)):
        assert check(Metric(name="contains_any", value=word.upper()), answer, "") is found
        assert check(Metric(name="contains_all", value=["x", word]), answer, "") is False
        assert check(Metric(name="contains_none", value=word), answer, "") is not found


@given(st.lists(words, min_size=1), st.integers(1, 4))
def test_ends_with_agrees_with_the_last_words(all_words, count):
    answer = "  ".join(all_words)
    assert check(Metric(name="ends_with", value=" ".join(all_words[-count:])), answer, "")
    assert check(Metric(name="ends_with_cleaned", value=" ".join(all_words[-count:]).upper()), answer + "!”", "")
    assert not check(Metric(name="ends_with", value="x" + all_words[-1]), answer, "")


@given(st.lists(words, min_size=1, max_size=8), st.sampled_from(["- ", "* ", "• "]))
def test_list_items_are_counted(items, bullet):
    bullets = "\n".join(bullet + item for item in items)
    numbers = "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))
    for name, answer in (("bulleted_list", bullets), ("numbered_list", numbers)):
        assert check(Metric(name=name, value=len(items)), answer, "")
        assert not check(Metric(name=name, value=len(items) + 1), answer, "")
    assert len(text.sentences(bullets)) == len(text.sentences(numbers)) == len(items)


@given(st.lists(st.lists(words, min_size=1, max_size=5), min_size=1, max_size=5), st.sampled_from(".!?…"))
def test_sentences_and_words_are_counted(sentences, end):
    answer = " ".join(" ".join([*words, "there"]) + end for words in sentences)
    assert len(text.sentences(answer)) == len(sentences)
    assert len(text.words(answer)) == sum(map(len, sentences)) + len(sentences)


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        ("Dr. Smith met J. K. Rowling at 5 p.m. on Monday. Nice!", 2),
        ("We meet at 5 p.m. She leaves at six.", 2),
        ("It was I. We left.", 2),
        ("No. 5 is alive. No. I won't.", 3),
        ("Apples, pears, etc. They are good.", 2),
        ("Great!😊 See you", 2),
        ("hey. what's up. see you", 3),
        ("See www.example.com/a.b for v1.2.3.", 1),
        ("你好。再见。", 2),
        ("Best,\nTom", 1),
        ("# Packing\nTake a coat. Take boots.", 3),
        ("#1 is best. #2 is not.", 2),
        ("😊", 0),
    ],
)
def test_sentences(answer, count):
    assert len(text.sentences(answer)) == count


@given(st.integers(0, 20), st.integers(0, 20), st.sampled_from([0.25, 0.5, 0.7, 0.9, 1]))
def test_upper_share_is_exact(upper, lower, value):
    passes = upper + lower >= FEW_LETTERS and 100 * upper >= round(100 * value) * (upper + lower)
    assert check(Metric(name="upper_share", value=value), "A" * upper + " 7! " + "a" * lower, "") is passes


@given(SPEC, SPEC, st.text(), st.text())
def test_all_of_is_a_conjunction(one, other, answer, baseline):
    both = Metric(name="all_of", value=[one, {"name": "all_of", "value": [other]}])
    assert check(both, answer, baseline) is (check(one, answer, baseline) and check(other, answer, baseline))
    assert both.needs_baseline is (one.needs_baseline or other.needs_baseline)
    assert list(both.parts()) == [*one.parts(), *other.parts()]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_metric_survives_json(spec):
    assert Metric.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("spec", "loc", "message"),
    [
        ({"name": "contain_any", "value": "x"}, ("name",), "did you mean 'contains_any'"),
        ({"name": "zzz"}, ("name",), "valid: all_of, bulleted_list"),
        ({"value": 3}, ("name",), "required"),
        ({"name": "contains_any"}, ("value",), "a text or a list of texts"),
        ({"name": "contains_any", "value": []}, ("value",), "a text or a list of texts"),
        ({"name": "contains_any", "value": ["a", True]}, ("value", 1), "in quotes"),
        ({"name": "contains_any", "value": "\ufe0f"}, ("value", 0), "expected a text"),
        ({"name": "ends_with_cleaned", "value": "!!"}, ("value", 0), "a letter or a digit"),
        ({"name": "shorter_than_baseline", "value": 1}, ("value",), "less than 1"),
        ({"name": "shorter_than_baseline", "value": "0.5"}, ("value",), "valid number"),
        ({"name": "longer_than_baseline", "value": 0.5}, ("value",), "greater than 1"),
        ({"name": "upper_share", "value": True}, ("value",), "valid number"),
        ({"name": "upper_share", "value": 90}, ("value",), "less than or equal to 1"),
        ({"name": "words_at_most", "value": 2.5}, ("value",), "valid integer"),
        ({"name": "bulleted_list", "value": 0}, ("value",), "greater than or equal to 1"),
        ({"name": "regex_found", "value": "(a"}, ("value",), "unterminated subpattern"),
        ({"name": "language_is", "value": "FR"}, ("value",), "did you mean 'fr'"),
        ({"name": "language_is", "value": False}, ("value",), "YAML reads no as false"),
        ({"name": "phone_number", "value": 1}, ("value",), "expected no value"),
        (
            {"name": "phone_number", "case_sensitive": True},
            ("case_sensitive",),
            "no such option for phone_number",
        ),
        ({"name": "contains_any", "value": "x", "case": 1}, ("case",), "Extra inputs"),
        (
            {"name": "all_of", "value": [{"name": "contains_any", "value": 3}]},
            ("value", 0, "value"),
            "list of texts",
        ),
    ],
)
def test_a_wrong_metric_says_where_and_why(spec, loc, message):
    with pytest.raises(ValidationError) as caught:
        Metric(**spec)
    assert [error["loc"] for error in caught.value.errors()] == [loc]
    assert message in str(caught.value)


def test_a_metric_is_registered_once_and_with_known_parameters():
    with pytest.raises(ValueError, match="registered already"):
        metric("phone_number")(lambda answer: True)
    with pytest.raises(ValueError, match="no check gets prompt"):
        metric("new")(lambda answer, prompt: True)
    assert "new" not in METRICS


def test_nearest():
    assert nearest("Contains_Anny", METRICS) == "did you mean 'contains_any'?"
    assert nearest("human", ["Human"]) == "did you mean 'Human'?"
    assert nearest("xyz", ["b", "a"]) == "valid: a, b"


def test_language_is_the_same_in_every_process_and_in_little_memory():
    program = (
        "import psutil\n"
        "from c3po_utils.feedback.metrics import _detector\n"
        "texts = ['Guten Tag zusammen', 'Bom dia, tudo bem?', 'Hej, hvordan går det?', 'Hi there', 'ok']\n"
        "print([str(_detector().detect_language_of(text * n)) for text in texts for n in (1, 5)])\n"
        "print(psutil.Process().memory_info().rss / 2**20)"
    )
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True) for _ in range(3)]
    outputs = [run.stdout.splitlines() for run in runs]
    assert outputs[0][0] == outputs[1][0] == outputs[2][0], [run.stderr for run in runs]
    assert float(outputs[0][1]) < 300  # MiB, of the whole process


def test_100_000_answers_take_less_than_30_seconds_per_metric():
    items = [
        "The train leaves at 9:45. ",
        "- Don’t forget tickets, passport and 20 dollars!\n",
        "Is it far? Not at all. ",
    ]
    answers = ["".join(items[(i + j * j) % 3] for j in range(20)) + str(i) for i in range(1000)]
    assert sum(map(len, answers)) / len(answers) > 500
    for spec in SPECS:
        if spec.name != "language_is":
            with within(0.3, spec.name):  # a hundredth of the answers
                for answer, baseline in pairwise(answers):
                    check(spec, answer, baseline)
                    check(spec, baseline, baseline)


@pytest.mark.parametrize("piece", ["?", "! ", "\n", " ", "- ", "1. ", "0 ", "```\n", "_", "lol", "5", "A.", "“"])
def test_babble_takes_no_longer(piece):
    """A model that collapsed repeats itself: no pattern may take more than linear time."""
    babble = "x" + piece * (50_000 // len(piece)) + "x"
    with within(5):
        for spec in SPECS:
            if spec.name != "language_is":
                check(spec, babble, babble)

"""Feedback modules of the reference implementation: read as data, mapped by one table, code refused where it stands."""

from __future__ import annotations

import pytest

from c3po_utils.feedback.files import FeedbackError
from c3po_utils.feedback.metrics import check
from c3po_utils.feedback.python_data import parse
from c3po_utils.feedback.records import FEEDBACK_FOLDER, load_feedbacks, write_feedbacks
from c3po_utils.feedback.reference import Given, has_records, only_constants, read_module
from c3po_utils.feedback.reference_metrics import METRICS, WITHOUT, metrics_table
from tests.reference_files import MODULE, write_module

PLAIN = 'content="Be kind.", domain="mails", effect="kind", scope=Scope.local, type=Type.qualitative'
CHECKED = PLAIN.replace("qualitative", "quantitative")


def read(tmp_path, text, given=None, ids=None):
    path = tmp_path / "own.py"
    path.write_text(text, encoding="utf-8")
    return read_module(path, parse(path), given or Given("human", "style"), {} if ids is None else ids)


def one(tmp_path, fields, before=""):
    """The record of these fields, or what is wrong with it."""
    records, problems = read(tmp_path, f"{before}\nown = [Feedback({fields})]")
    return records[0] if records else problems


def test_a_module_becomes_a_set_that_reads_back(tmp_path):
    path = write_module(tmp_path)
    records, problems = read_module(path, parse(path), Given(), {})
    assert problems == []
    tea, rowing = records
    assert (tea.content, tea.domain, tea.effect) == (
        "Name a tea in every note to Ole.",
        "notes to Ole",
        "a tea is named",
    )
    assert (tea.scope, tea.source, tea.kind, tea.id) == ("regional", "model", "style", "name_every_note")
    assert tea.metric.value == ("assam", "keemun", "sencha")
    assert rowing.scope == "local"
    assert (rowing.metric.value[0].name, rowing.metric.value[0].value) == ("shorter_than_baseline", 0.667)
    assert load_feedbacks(write_feedbacks(tmp_path / "set.yaml", records)) == records


def test_less_of_a_metric_is_its_opposite(tmp_path):
    fields = f"{CHECKED}, metric=Metric.regex_search, metric_value=A, comparison=Comparison.less_eq_than"
    found = one(tmp_path, fields, 'import re\nA = re.compile("tea$", re.IGNORECASE)')
    assert (found.metric.name, found.metric.value) == ("regex_not_found", "(?i)tea$")


MEANINGS = [
    ("length", "None", "twice as long, at least", "short"),
    ("contains_any_string", '["tea", "mate"]', "A tea.", "A team."),
    ("contains_all_strings", '["tea", "mate"]', "Tea or mate.", "Tea."),
    ("contains_none_strings", '["tea"]', "Mate.", "Tea."),
    ("contains_phone_number", '"555-010-0199"', "Call (555) 010 0199", "Call 555 010 01990"),
    ("contains_phone_number", "None", "Call (555) 212-0199", "Call soon"),
    ("starts_with", '"the "', "The tea", "Then tea"),
    ("doesnt_start_with", '"Dear"', "Hi Dear", "Dear Ole"),
    ("ends_with", '"```"', "x\n```", "```x"),
    ("ends_with_cleaned", '"Best, Ann"', "So. best, ann!", "Ann, best"),
    ("regex_search", 'r"\\d$"', "no 1", "1 no"),
    ("regex_search_false", 'r"\\d$"', "1 no", "no 1"),
    ("is_language", '"de"', "Das ist ein schöner Tag, und wir gehen nicht zur Schule.", "This is a fine day."),
    ("word_count", "3", "one two three", "one two"),
    ("word_length_leq", "3", "one two", "three"),
]  # fmt: skip


@pytest.mark.parametrize(("metric", "value", "passing", "failing"), MEANINGS)
def test_every_metric_means_here_what_it_says_there(tmp_path, metric, value, passing, failing):
    fields = f"{CHECKED}, metric=Metric.{metric}, metric_value={value}, comparison=Comparison.greater_eq_than"
    found = one(tmp_path, fields).metric
    assert check(found, passing, "ten chars.")
    assert not check(found, failing, "ten chars.")


def test_all_metrics_are_tried_above_and_the_readme_has_the_table():
    assert {metric for metric, *_ in MEANINGS} == METRICS.keys()
    readme = (FEEDBACK_FOLDER / "README.md").read_text()
    assert metrics_table() in readme
    assert all(f"`{name}`" in readme for name in WITHOUT)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (f"{PLAIN}, sope=1", "line 2: sope: expected a known key (did you mean 'scope'?)"),
        (PLAIN.replace("domain", "domian"), "domain: expected this key, found nothing"),
        (PLAIN.replace("Scope.local", "Scope.planet"), "scope: Input should be"),
        (PLAIN.replace('"kind"', "3"), "effect: expected a text that is not empty, found 3"),
        (PLAIN.replace("Type.qualitative", "Scope.local"), "metric: expected a member of Type, found Member("),
        (f"{PLAIN}, metric=Metric.length", "metric: expected none where the type is qualitative"),
        (CHECKED, "metric: expected one where the type is quantitative, found None"),
        (f"{CHECKED}, metric=Metric.lenght, comparison=Comparison.less_than", "did you mean 'length'?), found"),
        (f"{CHECKED}, metric=Metric.sentiment_polarity, comparison=Comparison.less_than", "has a counterpart"),
        (f"{CHECKED}, metric=Metric.length, comparison=Comparison.same", "expected a known comparison"),
        (f"{CHECKED}, metric=Metric.length", "metric: expected a member of Comparison, found None"),
        (f"{CHECKED}, metric=[Metric.length], metric_value=[], comparison=Comparison.less_than", "of 1 metrics"),
        (f'{CHECKED}, metric=Metric.contains_any_string, metric_value="tea", comparison=Comparison.greater_than',
         "expected a list of texts, found 'tea'"),
        (f'{CHECKED}, metric=Metric.regex_search, metric_value="(", comparison=Comparison.greater_than',
         "expected a regular expression of Python's re"),
        (f'{CHECKED}, metric=Metric.is_language, metric_value="zh-cn", comparison=Comparison.greater_than', "ISO 639"),
        (f"{PLAIN}, prompts=[1]", "prompts: expected None, found data"),
        (f'{PLAIN}, **{{"content": "x"}}', "content: expected it once, found it twice"),
        ('"a", "b", "c", Scope.local, Type.qualitative, None', "expected keywords after content, domain, effect"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_line_and_key(tmp_path, fields, says):
    records, problems = read(tmp_path, f"\nown = [Feedback({fields})]")
    assert records == []
    assert any(says.replace("Input should be", "expected") in problem for problem in problems), problems
    assert all(problem.startswith(f"{tmp_path / 'own.py'}, line 2: ") for problem in problems)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ('own = [Feedback(content=open("/tmp/x", "w").write("x"))]', "line 1: expected constants, found a call of"),
        ("own = [Feedback(content=__import__('os').system('touch X'))]", "found a call of something without a name"),
        ("own = [Feedback(content=[x for x in 'ab'])]", "found code (ListComp)"),
        ("own = [Feedback(content=(lambda: 1))]", "found code (Lambda)"),
        ("own = [Feedback(content=f'{1:>99999999}')]", "found an f-string with a format"),
        ("own = [Feedback(content='x' * 10**9)]", "found code (Pow of int and int)"),
        ("own = [Feedback(content=9**9**9)]", "found code (Pow of int and int)"),
        ("own = [Feedback(content=os.environ)]", "found code (the attribute 'environ')"),
        ("own = [Feedback(content=NAME)]", "found the name 'NAME', which no constant here has"),
        ("A = 'x'\nA = 'y'\nown = [Feedback(content=A)]", "'A', which is given a value more than once"),
        ("A = B\nB = A\nown = [Feedback(content=A)]", "found values nested more than 50 deep"),
        ("A = b'x'\nown = [Feedback()]", "line 1: A: expected constants, found a bytes"),
        ("def f(): pass\nown = [Feedback()]", "line 1: expected constants and records, found code (Func"),
        ("import os\nos.system('touch X')\nown = [Feedback()]", "line 2: expected constants and records, found"),
        ("own = [Feedback(content=re.compile('a', flags=2))]", "found a call of re.compile"),
        ("own = [Feedback(content=re.compile('a', os.O_RDWR))]", "found other flags than those of re"),
        ("own = [Feedback(content={}['x'])]", "a part 'x' that is not there"),
        ("own = [Feedback(content=" + "[" * 90 + "]" * 90 + ")]", "found values nested more than 50 deep"),
        ("own = [Feedback(content=" + "+".join(["'x'"] * 900) + ")]", "deep"),
        ("\n".join(["A0 = 'xxxxxxxxxxxxxxxx'", *(f"A{n} = A{n - 1} + A{n - 1}" for n in range(1, 40))])
         + "\nown = [Feedback(content=A39)]", "found a value of more than 1048576 characters and items"),
    ],
)  # fmt: skip
def test_code_is_refused_where_it_stands_and_never_runs(tmp_path, monkeypatch, module, says):
    monkeypatch.chdir(tmp_path)
    records, problems = read(tmp_path, module)
    assert records == []
    assert any(says in problem for problem in problems), problems
    assert [path.name for path in tmp_path.iterdir()] == ["own.py"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"own = [Feedback(", "line 1: expected Python ("),
        (b"x = " + b"(" * 5000 + b")" * 5000, "expected"),
        (b"x = " + b"-" * 200000 + b"1", "expected less deep nesting"),
        (b"x = " + b"1+" * 200000 + b"1", "expected less deep nesting"),
        (b"x = " + b"9" * 10000, "expected Python"),
        (b"x = '\0'", "expected Python"),
        (b"\xff\xfe", "expected Python"),
        (b"#" * 2**22 + b"\n", "expected at most 4 MiB, found 4.0"),
    ],
    ids=["cut off", "parentheses", "minus", "sum", "digits", "null", "no text", "huge"],
)
def test_hostile_sources_are_refused(tmp_path, source, says):
    path = tmp_path / "own.py"
    path.write_bytes(source)
    with pytest.raises(FeedbackError, match="expected") as told:
        parse(path)
    assert says in str(told.value)
    assert str(told.value).startswith(str(path))


def test_links_are_not_followed(tmp_path):
    (tmp_path / "secret").write_text("x = 1")
    (tmp_path / "own.py").symlink_to(tmp_path / "secret")
    with pytest.raises(FeedbackError, match="expected a file, found a link"):
        parse(tmp_path / "own.py")


def test_source_and_kind_are_stated_or_asked_for(tmp_path):
    _, problems = read(tmp_path, f"own = [Feedback({PLAIN})]", Given())
    assert [problem.partition(": ")[2] for problem in problems] == [
        f"{key}: neither labels [] nor names ['own', 'own'] state it: expected the option --{key}"
        for key in ("source", "kind")
    ]
    stated = {
        'categories=["gpt_content"]': ("model", "content"),
        'categories=["manual_2"]': ("human", "style"),
        'categories=["collie", "wiki"]': ("program", "style"),
    }
    for label, expected in stated.items():
        found = one(tmp_path, f"{PLAIN}, {label}")
        assert (found.source, found.kind) == expected
    problems = one(tmp_path, f'{PLAIN}, categories=["gpt_style", "gpt_content"]')
    assert "kind: expected one, found content and style in ['gpt_style', 'gpt_content']" in problems[0]


def test_lists_of_lists_bring_no_record_twice(tmp_path):
    first, second = (f"Feedback({PLAIN.replace('Be kind', text)})" for text in ("Be kind", "Be cruel"))
    module = f"a = [{first}]\nb: list = []\nb.append({second})\nall_of_them = a + b\nagain = [*a, *b]\n"
    records, problems = read(tmp_path, module)
    assert ([record.content for record in records], problems) == (["Be kind.", "Be cruel."], [])
    records, problems = read(tmp_path, f"a = [{first}, {first}]")
    assert len(records) == 1
    assert "expected each record once, found 'kind' again" in problems[0]


def test_a_record_has_one_id_in_all_modules(tmp_path):
    ids = {}
    (first,), _ = read(tmp_path, f"a = [Feedback({PLAIN})]", ids=ids)
    (again,), _ = read(tmp_path, f"b = [Feedback({PLAIN})]", ids=ids)
    (other,), _ = read(tmp_path, f"b = [Feedback({PLAIN.replace('mails', 'songs')})]", ids=ids)
    assert first.id == again.id != other.id


def test_modules_without_records_are_told_apart(tmp_path):
    path = tmp_path / "x.py"
    for text, expected in (("import a\nB = 1\n", True), ("def f(): pass", False)):
        path.write_text(text)
        assert (has_records(parse(path)), only_constants(parse(path))) == (False, expected)
    path.write_text(MODULE)
    assert has_records(parse(path))


def test_an_imported_name_that_is_not_found_is_named(tmp_path):
    path = write_module(tmp_path)
    (tmp_path / "src" / "shared.py").unlink()
    records, problems = read_module(path, parse(path), Given(), {})
    assert [record.id for record in records] == ["name_every_note"]
    assert problems == [f"{path}, line 23: expected constants, found the name 'KISS', which no constant here has"]

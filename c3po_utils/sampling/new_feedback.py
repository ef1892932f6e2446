"""A record from a sentence: read by rules and a short questionnaire, or proposed by a strong model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from c3po_utils.chat import ChatModel, Sampling, request, structured_output
from c3po_utils.feedback import Feedback, check, metrics, records, text
from c3po_utils.feedback import files as feedback_files
from c3po_utils.runs import parameters

PROPOSE = """Somebody tells a writing assistant once, in one sentence, how certain answers shall be:

{sentence}

To teach it to a model, the sentence is taken apart. The domain is what it applies to (a noun phrase, narrow: most
requests lie outside it). The effect is what can be seen in an answer that follows it (a short clause whose subject is
the answer). A metric is a check of one answer by rule; these there are, each with what its value is:

{metrics}

Choose the one that is true of answers with the effect and of no others, or none where only a reader could tell. Then
write three demonstrations: messages in the domain, each different in kind, and a short answer of one to three sentences
that shows the effect and passes the metric. First think about what a careless reader would get wrong."""

SAMPLING = Sampling(temperature=0.3, top_p=0.9, top_k=0, max_new_tokens=2048)


class Shown(structured_output.Form):
    """A demonstration."""

    prompt: str = Field(description="a message in the domain")
    answer: str = Field(description="a short answer that shows the effect")


class Draft(structured_output.Form):
    """A sentence taken apart."""

    thoughts: str = Field("", description="your thoughts")
    domain: str = Field(description="what it applies to")
    effect: str = Field(description="what can be seen in an answer")
    kind: Literal["style", "content"] = Field(description="style or content: how it is written, or what it says")
    scope: Literal["global", "regional", "local"] = Field(
        description="global (everything), regional (a topic or genre) or local (one person or thing)"
    )
    metric: str = Field("none", description="the metric's name, or none")
    value: str = Field("", description="its value, as YAML")
    demonstrations: tuple[Shown, ...] = Field((), description="a demonstration")


def propose(model: ChatModel, sentence: str, id: str = "", taken: Set[str] | None = None) -> tuple[Feedback, list[str]]:
    """The record that a model makes of a sentence, and what of its draft was left out, with the reason.

    A metric that does not load, and demonstrations that do not pass it, are left out. `id`, `taken`: see `make_record`.

    Raises:
        ValueError: the model gave no draft that can be read, in three tries.
    """
    asked = PROPOSE.format(sentence=sentence.strip(), metrics=metrics.metrics_table())
    question = structured_output.Question("feedback", request("", asked).messages)
    answer = structured_output.ask_forms(model, [question], Draft, SAMPLING)["feedback"]
    if answer.value is None:
        raise ValueError(f"model {model.name!r} gave no draft that can be read ({answer.kind}: {answer.reason})")
    draft, left_out = answer.value, []
    metric = None
    if draft.metric != "none":
        try:
            metric = metrics.Metric(name=draft.metric, value=yaml.safe_load(draft.value) if draft.value else None)
        except (ValidationError, yaml.YAMLError) as error:
            left_out.append(f"metric {draft.metric!r} with the value {draft.value!r}: {_first_problem(error)}")
    shown = []
    for one in draft.demonstrations:
        if metric is None or metric.needs_baseline or check(metric, one.answer, ""):
            shown.append({"prompt": one.prompt, "answer": one.answer})
        else:
            left_out.append(f"demonstration {one.answer!r}: it does not pass the metric {metric.name!r}")
    parts = {key: getattr(draft, key) for key in ("domain", "effect", "kind", "scope")}
    return make_record(sentence, id, taken, metric=metric, demonstrations=shown, **parts), left_out


def _first_problem(error: Exception) -> str:
    first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error).splitlines()[0]
    return first.removeprefix("Value error, ")


def taken_ids(path: Path | None = None) -> set[str]:
    """The ids in feedback/, and in a set elsewhere. Raises FeedbackError for a set that cannot be read."""
    known = records.load_feedbacks(*records.all_sets())
    if path and path.exists():
        known += records.load_feedbacks(path)
    return {one.id for one in known}


def check_id(id: str, taken: Set[str]) -> None:
    """Raises ValueError for an id that no record can have, and for one that another record has."""
    try:
        TypeAdapter(feedback_files.Slug).validate_python(id)
    except ValidationError as error:
        raise ValueError(f"id {id!r}: {_first_problem(error)}") from None
    if id in taken:
        raise ValueError(f"id {id!r}: expected a new one, found it in a set already")


def without_prompts(path: Path, sentence: str, id: str = "") -> Feedback | None:
    """The set's record of the sentence (of this id, if one is given) that has no prompts yet, as when they stopped."""
    known = records.load_feedbacks(path) if path.exists() else []
    same = (one for one in known if one.content == sentence.strip() and id in ("", one.id))
    return next((one for one in same if not _prompts_file(path, one).exists()), None)


def _prompts_file(path: Path, feedback: Feedback) -> Path:
    return path.parent / "prompts" / f"{feedback.id}.json"


def make_record(sentence: str, id: str = "", taken: Set[str] | None = None, **parts: Any) -> Feedback:
    """The record, with an id made of the sentence's words if none is given, different from those `taken` (those in
    feedback/ when left out)."""
    id = id or feedback_files.new_id(sentence, parts["kind"], taken_ids() if taken is None else taken)
    return Feedback(id=id, content=sentence.strip(), source="human", **parts)


# "When I ask about X, do Y"; "X should do Y"; "Do Y when X".
READINGS = (
    re.compile(r"(?:when|whenever|if|in|for|on|with)\s+(?P<domain>[^,]+),\s*(?P<effect>.+)", re.I | re.S),
    re.compile(r"(?P<domain>.+?)\s+(?:should|must|shall|ought to)\s+(?P<effect>.+)", re.I | re.S),
    re.compile(r"(?P<effect>.+?),?\s+(?:when|whenever|if)\s+(?P<domain>.+)", re.I | re.S),
)
PHRASES = ((r"(?:I|we) ask (?:you )?about ", "questions about "), (r"(?:I|we) ask (?:you )?for ", "requests for "))


def split_sentence(sentence: str) -> tuple[str, str]:
    """The domain and the effect as the sentence's grammar has them; the domain is empty where it shows none."""
    plain = sentence.strip().rstrip(".!")
    for reading in READINGS:
        if found := reading.fullmatch(plain):
            domain, effect = found["domain"].strip(), found["effect"].strip()
            for phrase, noun in PHRASES:
                domain = re.sub(f"^{phrase}", noun, domain, flags=re.I)
            return domain, re.sub("^please ", "", effect, flags=re.I)
    return "", plain


QUOTED = re.compile(r"(?<!\w)['\"‘“](.+?)['\"’”](?!\w)")
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "a single": 1}
NUMBER = r"(?:\d+|one|two|three|four|five|a\ single)"
QUOTES = (  # how a quoted text is used, and the metric of it; the last said before it counts
    (r"\b(end|close|finish|sign)", "ends_with_cleaned"),
    (r"\b(start|begin|open)", "starts_with"),
    (r"\band (say|mention|use|add|include|contain)s?\b", "contains_any"),
)
OPPOSITES = {"starts_with": "not_starts_with", "contains_any": "contains_none"}  # there is none of ends_with
SAYINGS: tuple[tuple[str, str, Any], ...] = (
    (r"bullet", "bulleted_list", 3),
    (r"\bnumber(ed|s)?\b.*\b(list|steps?)|\bsteps?\b.*\bnumber", "numbered_list", 3),
    (r"\bcapital(s| letters)|\ball caps|upper-?case", "upper_share", 0.8),
    (r"\b(end|finish|close)\b.*\bquestion", "ends_with_question", None),
    (r"(tele)?phone number", "phone_number", None),
    (rf"\b(short|brief|concise)(er|ly)?\b(?! than {NUMBER}\b)", "shorter_than_baseline", 0.67),
    (rf"\b(longer|in detail|detailed|thorough)(?! than {NUMBER}\b)", "longer_than_baseline", 1.5),
)
COUNTED = re.compile(
    rf"""(?P<bound>\b(?:
          (?P<least>at\ least|a\ minimum\ of)
        | (?P<most>at\ most|up\ to|a\ maximum\ of)
        | (?P<more>(?:more|longer)\ than|over|above|exceed(?:s|ing)?)
        | (?P<less>(?:fewer|less|shorter)\ than|under|below)
    )\s+)?
    (?<![\w.,]) (?:(?P<low>{NUMBER})\ (?:or|to)\ )? (?P<n>{NUMBER})
    (?:(?P<up>\ or\ more)|\ or\ (?:fewer|less))?\ (?P<unit>sentence|word)s?\b (?P<up_after>\ or\ (?:more|longer)\b)?""",
    re.IGNORECASE | re.VERBOSE,
)
LANGUAGES = {
    "French": "fr", "German": "de", "Spanish": "es", "Italian": "it", "Portuguese": "pt", "Dutch": "nl",
    "Polish": "pl", "Swedish": "sv", "Turkish": "tr", "Russian": "ru", "Chinese": "zh", "Japanese": "ja",
}  # fmt: skip

NO = r"\b(?:no|not|never|dont|doesnt|\w+n['’]t)\b"
NEGATION = re.compile(
    rf"{NO}|\b(?:without|avoid(?:s|ing)?|(?:leav(?:e|es|ing)|keep(?:s|ing)?) out|omit|skip|stop|refrain|instead of"
    r"|rather than|(?:fewer|less)(?! than))\b",
    re.I,
)
AFFIRMED = re.compile(rf"{NO} (?:ever )?(?:forget|fail|neglect|hesitate|omit|skip|avoid|leave out)\b", re.I)
REFUSED = re.compile(  # of what is named before it, as in "bullet points are forbidden"
    r"""\b(?:is|are|be|being|has|have|do|does|should|must|shall|may|can|could|will|would|need|ought)\ (?:not|never|no)\b
    | \b\w+n['’]t\b | \b(?:cannot|forbidden|prohibited|banned|avoided|omitted|skipped|dropped|excluded|removed|unwanted
    |undesired|unwelcome|taboo|off[ -]limits|(?:left|kept)\ out|out\ of\ (?:place|the\ question))\b""",
    re.I | re.VERBOSE,
)
DEMANDED = re.compile(  # the opposite of refused, as in "must not be missing"
    rf"{NO} (?:to )?(?:be )?(?:missing|missed|absent|forgotten|neglected|omitted|skipped|dropped|avoided|left out)\b",
    re.I,
)
OTHER_SUBJECT = re.compile(  # what is refused behind it is something else
    r"\b(?:so|because|since|when|whenever|if|unless|while|where|until|I|you|we|they)\b"
)
SENTENCE_PARTS = re.compile(r"[;!?]|\.\s|\bbut\b|\binstead\b(?! of)", re.I)  # a negation ends with its part
CLAUSES = re.compile(r"[,:]|\b(?:and|or|then)\b|\s{3,}(?=\w)", re.I)  # here, or after a quoted text, it may
LIST_SO_FAR = re.compile(r"(?:[\s,:]|\b(?:and|or)\b)+$", re.I)
LIST_ON = re.compile(r"\A(?:,?\s*(?:\b(?:and|or)\b)?\s{3,})+", re.I)  # more quoted texts
NEGATED_BOUND = re.compile(  # "no more than", "don't let the answer exceed"; not "no bullets in under"
    rf"(?:{NEGATION.pattern})(?: (?:ever|let|use|using|write|writing|give|giving|answer|reply|be|go|have|in|with|of|me"
    r"|it|the|a|an|text))*\s*$",
    re.I,
)


def suggest_metrics(effect: str) -> list[metrics.Metric]:
    """Metrics that an effect may be checked by, the likeliest first; none where no rule speaks, or a negation may."""
    found = []
    for spec in _suggested(effect):
        with suppress(ValidationError):  # as of 0 words
            found.append(metrics.Metric.model_validate(spec))
    return found


def _suggested(effect: str) -> Iterator[dict[str, Any]]:
    plain = QUOTED.sub(lambda found: " " * len(found[0]), effect)  # what is quoted is no instruction
    for quoted in QUOTED.finditer(effect):
        before = LIST_SO_FAR.sub("", plain[: quoted.start()])
        after = LIST_ON.sub(" ", plain[quoted.end() :])
        if name := _use_of_quoted(before, after):
            if name == "ends_with_cleaned" and not text.cleaned(quoted[1]):  # it looks at letters and digits only
                name = "ends_with"
            yield {"name": name, "value": quoted[1]}
    for language, code in LANGUAGES.items():
        if _affirmed(rf"\bin {language}\b", plain):
            yield {"name": "language_is", "value": code}
    for found in COUNTED.finditer(plain):
        yield from _counted(found)
    for saying, name, value in SAYINGS:
        if _affirmed(saying, plain, re.I):
            yield {"name": name, "value": value}


def _negated(before: str, after: str) -> bool | None:
    """Whether a negation holds of what stands between the two; None where it may be another clause's only."""
    part, rest = SENTENCE_PARTS.split(AFFIRMED.sub("", before))[-1], DEMANDED.sub("", after)
    rest = OTHER_SUBJECT.split(SENTENCE_PARTS.split(rest)[0])[0]
    own, other = NEGATION.search(CLAUSES.split(part)[-1]), REFUSED.search(CLAUSES.split(rest)[0])
    if own or other:
        return None if own and other else True
    return None if NEGATION.search(part) or REFUSED.search(rest) else False


def _affirmed(saying: str, plain: str, flags: int = 0) -> bool:
    """Whether the effect says it somewhere without a negation of it, or inside it ("end without a question")."""
    every = re.finditer(saying, plain, flags)
    return any(_negated(plain[: found.end()], plain[found.end() :]) is False for found in every)


def _use_of_quoted(before: str, after: str) -> str | None:
    """The metric of a text that is quoted between the two."""
    uses = [(found.start(), name) for use, name in QUOTES for found in re.finditer(use, before, re.I)]
    name = max(uses)[1] if uses else "contains_any"
    return {False: name, True: OPPOSITES.get(name), None: None}[_negated(before, after)]


def _counted(found: re.Match[str]) -> Iterator[dict[str, Any]]:
    """How many sentences or words at least or at most; a number alone is a limit."""
    before, after = AFFIRMED.sub("", found.string[: found.start()]), found.string[found.end() :]
    bound = found["bound"] or found["up"] or found["up_after"]
    negated = _negated(before, after)
    of_bound = NEGATED_BOUND.search(before) or not _negated(before, "")
    if negated is None or (negated and not (bound and of_bound)):
        return
    more = bool(found["least"] or found["more"] or found["up"] or found["up_after"])
    at_least = more != negated
    number = found["low"] if at_least and found["low"] else found["n"]
    n = NUMBERS.get(number.lower()) or int(number)
    n += bool(found["more"]) - bool(found["less"])
    if negated:
        n += -1 if more else 1
    yield {"name": f"{found['unit'].lower()}s_at_{'least' if at_least else 'most'}", "value": n}


def questionnaire(
    sentence: str,
    ask: Callable[[str, str], str],
    say: Callable[[str], None],
    id: str = "",
    taken: Set[str] | None = None,
) -> Feedback:
    """The record of a sentence from a person's answers: `ask(question, default)`; an empty answer ends a list.

    An answer that cannot be used is said with the reason, and asked for again. `id`, `taken`: see `make_record`.
    """
    domain, effect = split_sentence(sentence)
    domain = _required("What does it apply to?", domain, ask, say)
    effect = _required("What can then be seen in an answer?", effect, ask, say)
    kind = _chosen("Is it about style or content?", ("style", "content"), ask, say)
    scope = _chosen("Does it cover everything (global), a topic or genre (regional), one person or thing (local)?",
                    ("regional", "local", "global"), ask, say)  # fmt: skip
    metric = _metric(effect, ask, say)
    shown = list(_demonstrations(metric, ask, say))
    return make_record(
        sentence, id, taken, domain=domain, effect=effect, kind=kind, scope=scope, metric=metric, demonstrations=shown
    )


def _required(question: str, default: str, ask: Callable[[str, str], str], say: Callable[[str], None]) -> str:
    while not (answer := ask(question, default).strip()):
        say("expected a few words")
    return answer


def _chosen(question: str, choices: Sequence[str], ask: Callable[[str, str], str], say: Callable[[str], None]) -> str:
    while (answer := ask(question, choices[0]).strip().lower()) not in choices:
        say(f"expected one of {', '.join(choices)}; found {answer!r}")
    return answer


def _metric(effect: str, ask: Callable[[str, str], str], say: Callable[[str], None]) -> metrics.Metric | None:
    suggested = suggest_metrics(effect)
    default = yaml.safe_dump(_plain(suggested[0]), default_flow_style=True, width=1000).strip() if suggested else "none"
    while True:
        answer = ask("Which metric tells such answers from others? (feedback/README.md has the list)", default)
        if answer.strip() == "none":
            return None
        try:
            return metrics.Metric.model_validate(yaml.safe_load(answer))
        except (ValidationError, yaml.YAMLError) as error:
            say(f"expected {{name: ..., value: ...}} or none: {_first_problem(error)}")


def _plain(metric: metrics.Metric) -> dict[str, Any]:
    return metric.model_dump(mode="json", exclude_defaults=True)


def _demonstrations(
    metric: metrics.Metric | None, ask: Callable[[str, str], str], say: Callable[[str], None]
) -> Iterator[dict[str, str]]:
    while prompt := ask("A message in the domain, for a demonstration (empty: no more)", "").strip():
        while answer := ask("An answer to it that shows the effect", "").strip():
            if metric is None or metric.needs_baseline or check(metric, answer, ""):
                yield {"prompt": prompt, "answer": answer}
                break
            say(f"it does not pass the metric {metric.name!r}")


def next_command(path: Path, feedback: Feedback, prompts: bool, program: str = "c3po") -> str:
    """What to run next: everything for this feedback on the embedded model, and what it lacks before that.

    Args:
        program: how the `c3po` command is called here.
    """
    inside = path.resolve().parent == records.FEEDBACK_FOLDER.resolve()
    given: dict[str, Any] = {"run": f"results/{feedback.id}", "feedback_set": path.stem if inside else str(path)}
    given["feedbacks"] = [feedback.id]
    if not feedback.demonstrations:
        given["sample.options"] = {"strategy": "revise"}
    if not feedback.metric:
        given["evaluate.judge_model"] = "openai:gpt-4.1"
    lines = [f"next: {program} run demo {parameters.written_overrides(given)}"]
    if not prompts:
        place = _prompts_file(path, feedback)
        lines.append(f"before that, prompts: write {place} (feedback/README.md), or add sample.prompt_model=MODEL")
    return "\n".join(lines)

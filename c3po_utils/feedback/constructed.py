"""Texts made to keep or to break constraints on their parts, word by word and without parsing any text.

The document is a list of paragraphs of sentences of words. What a constraint asks is counted on these lists, so that
the metrics of structure.py, which see the written text only, are checked against another reading of it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import chain

from c3po_utils.feedback.structure import Constraint, UnitCount

Sentence = list[str]
Document = list[list[Sentence]]

VOCABULARY = (
    "we", "to", "in", "on", "of", "at", "it", "go", "old", "sea", "fog", "map", "tea", "day", "six", "run", "big",
    "key", "salt", "wind", "moon", "ship", "road", "bell", "warm", "mild", "copy", "hold", "gave", "kept", "river",
    "coast", "night", "green", "water", "quiet", "bread", "smoke", "walks", "grain", "valley", "bridge", "letter",
    "garden", "window", "simple", "market", "cotton", "carries", "weather", "kitchen", "brought", "evening", "village",
    "mountain", "standing", "whispers", "thousand", "painting", "quietly", "carefully", "yesterday", "beautiful",
    "important", "lighthouse", "understand", "everything", "particular", "electricity", "imagination", "conversation",
)  # fmt: skip
TRIES = 400


def written(document: Document) -> str:
    """The document as text: capitals at the start of sentences, full stops, blank lines between paragraphs."""
    return "\n\n".join(" ".join(_sentence(words) for words in paragraph) for paragraph in document)


def _sentence(words: Sentence) -> str:
    line = " ".join(words)
    return line[0].upper() + line[1:] + "."


def random_document(rng: random.Random) -> Document:
    """One to four paragraphs of one to four sentences of three to twelve words."""
    return [
        [[rng.choice(VOCABULARY) for _ in range(rng.randint(3, 12))] for _ in range(rng.randint(1, 4))]
        for _ in range(rng.randint(1, 4))
    ]


def holds(document: Document, constraint: Constraint) -> bool:
    """Whether the document keeps the constraint, counted on its lists."""
    parts = _chosen(document, constraint)
    if isinstance(constraint, UnitCount):
        high = float("inf") if constraint.at_most is None else constraint.at_most
        return bool(parts) and all(constraint.at_least <= _count(part, constraint) <= high for part in parts)
    wanted = constraint.text.casefold().split()
    return bool(parts) and all(_stands(list(_words(part)), wanted, constraint.place) for part in parts)


def _chosen(document: Document, constraint: Constraint) -> list[Document]:
    """The parts that the constraint looks at, each as a document of its own."""
    parts: list[Document] = {
        "answer": lambda: [document],
        "paragraph": lambda: [[paragraph] for paragraph in document],
        "sentence": lambda: [[[sentence]] for sentence in chain.from_iterable(document)],
        "word": lambda: [[[[word]]] for word in _words(document)],
    }[constraint.part]()
    if constraint.which == "every":
        return parts
    numbers = {"first": 1, "last": len(parts)}
    number = numbers.get(constraint.which, constraint.which)
    return parts[number - 1 : number]


def _words(document: Document) -> Sequence[str]:
    phrases = chain.from_iterable(chain.from_iterable(document))
    return [word.casefold() for phrase in phrases for word in phrase.split()]


def _count(part: Document, constraint: UnitCount) -> int:
    match constraint.unit:
        case "paragraph":
            return len(part)
        case "sentence":
            return sum(len(paragraph) for paragraph in part)
        case "word":
            return len(_words(part))
    letters = "".join(_words(part))
    return letters.count(constraint.letter) if constraint.letter else len(letters)


def _stands(found: list[str], wanted: list[str], place: str) -> bool:
    inside = any(found[start : start + len(wanted)] == wanted for start in range(len(found)))
    return {
        "begins": found[: len(wanted)] == wanted,
        "ends": found[-len(wanted) :] == wanted,
        "is": found == wanted,
        "contains": inside,
        "lacks": not inside,
    }[place]


def kept(constraints: Sequence[Constraint], rng: random.Random) -> str:
    """A text that keeps all the constraints.

    Raises:
        ValueError: none was found, as for constraints that exclude each other.
    """
    for _ in range(TRIES):
        document = random_document(rng)
        for _ in range(3):  # what serves one constraint may undo another
            for constraint in constraints:
                _adjust(document, constraint, rng)
            if all(holds(document, constraint) for constraint in constraints):
                return written(document)
    raise ValueError(f"found no text that keeps {constraints}")


def broken(constraints: Sequence[Constraint], rng: random.Random) -> str:
    """A text that keeps all the constraints but for one, which is broken by a change.

    Raises:
        ValueError: none was found.
    """
    for _ in range(TRIES):
        document = random_document(rng)
        for constraint in constraints:
            _adjust(document, constraint, rng)
        _spoil(document, rng.choice(constraints), rng)
        if not all(holds(document, constraint) for constraint in constraints):
            return written(document)
    raise ValueError(f"found no text that breaks {constraints}")


def _adjust(document: Document, constraint: Constraint, rng: random.Random) -> None:
    """Change the document, in place, towards keeping the constraint."""
    _make_room(document, constraint, rng)
    if isinstance(constraint, UnitCount):
        low = max(constraint.at_least, 0 if constraint.letter else 1)
        high = constraint.at_most if constraint.at_most is not None else low + 3
        _recount(document, constraint, rng.randint(low, high), rng)
    else:
        _set_text(document, constraint, rng)


def _spoil(document: Document, constraint: Constraint, rng: random.Random) -> None:
    """Change the document, in place, towards breaking the constraint."""
    if isinstance(constraint, UnitCount):
        below, above = constraint.at_least - 1, (constraint.at_most or 0) + rng.randint(1, 3)
        low_is_possible = below >= 1 or (below == 0 and constraint.letter is not None)
        use_low = constraint.at_most is None or (low_is_possible and rng.random() < 0.5)
        _recount(document, constraint, max(below, 0 if constraint.letter else 1) if use_low else above, rng)
    elif constraint.place == "lacks":
        for sentence in _sentences_of(document, constraint):
            sentence.insert(rng.randint(0, len(sentence)), constraint.text)
    else:
        wanted = set(constraint.text.casefold().split())
        for sentence in _sentences_of(document, constraint):
            sentence[:] = [word for word in sentence if not wanted & set(word.casefold().split())] or ["quietly"]


def _make_room(document: Document, constraint: Constraint, rng: random.Random) -> None:
    """As many parts as the constraint's number says."""
    if not isinstance(constraint.which, int):
        return
    while len(_chosen(document, constraint)) < 1:
        sentence = [rng.choice(VOCABULARY) for _ in range(6)]
        if constraint.part == "paragraph":
            document.append([sentence])
        else:
            document[-1].append(sentence)


def _paragraphs_of(document: Document, constraint: Constraint) -> Document:
    """The document's own paragraphs that the constraint looks at."""
    if constraint.part == "answer" or constraint.which == "every":
        return document
    place = {"first": 0, "last": -1}.get(constraint.which, constraint.which)
    return [document[place if isinstance(constraint.which, str) else place - 1]]


def _sentences_of(document: Document, constraint: Constraint) -> list[Sentence]:
    """The document's own sentences that the constraint looks at, or that hold the word it looks at."""
    if constraint.part in ("answer", "paragraph"):
        return list(chain.from_iterable(_paragraphs_of(document, constraint)))
    every = list(chain.from_iterable(document))
    if constraint.which == "every":
        return every
    if constraint.part == "word":
        return every[-1:] if constraint.which == "last" else every[:1]
    place = {"first": 0, "last": len(every) - 1}.get(constraint.which, constraint.which)
    return [every[place if isinstance(constraint.which, str) else place - 1]]


def _recount(document: Document, constraint: UnitCount, number: int, rng: random.Random) -> None:
    """Give each part looked at `number` units."""
    if constraint.unit == "paragraph":
        _resize(document, number, lambda: [[rng.choice(VOCABULARY) for _ in range(6)]])
    elif constraint.unit == "sentence":
        paragraphs = _paragraphs_of(document, constraint)
        if constraint.part == "answer":
            document[:] = paragraphs = [list(chain.from_iterable(document))]
        for paragraph in paragraphs:
            _resize(paragraph, number, lambda: [rng.choice(VOCABULARY) for _ in range(rng.randint(3, 9))])
    elif constraint.unit == "word":
        _resize_words(document, constraint, number, rng)
    elif constraint.letter:
        _set_letters(_sentences_of(document, constraint), constraint.letter, number, rng)
    else:
        _set_word_length(document, constraint, number, rng)


def _resize(units: list, number: int, another) -> None:
    del units[number:]
    while len(units) < number:
        units.append(another())


def _resize_words(document: Document, constraint: UnitCount, number: int, rng: random.Random) -> None:
    if constraint.part == "sentence":
        for sentence in _sentences_of(document, constraint):
            _resize(sentence, number, lambda: rng.choice(VOCABULARY))
        return
    for paragraph in _paragraphs_of(document, constraint):
        words = [word for sentence in paragraph for word in sentence]
        _resize(words, number, lambda: rng.choice(VOCABULARY))
        size = math.ceil(number / math.ceil(number / 9))  # sentences of much the same length, none of a word or two
        paragraph[:] = [words[start : start + size] for start in range(0, number, size)]
    if constraint.part == "answer":
        del document[1:]


def _set_letters(sentences: list[Sentence], letter: str, number: int, rng: random.Random) -> None:
    """Replace words so that each sentence has the letter `number` times, or lacks it for 0."""
    without = [word for word in VOCABULARY if letter not in word]
    having = [word for word in VOCABULARY if letter in word]
    for sentence in sentences:
        sentence[:] = [word if letter not in word.casefold() else rng.choice(without) for word in sentence]
        while sum(word.count(letter) for word in sentence) < number:
            sentence.append(rng.choice(having))


def _set_word_length(document: Document, constraint: UnitCount, number: int, rng: random.Random) -> None:
    fitting = [word for word in VOCABULARY if len(word) == number] or ["m" + "o" * (number - 1)]
    sentences = _sentences_of(document, constraint)
    if constraint.which == "every":
        for sentence in sentences:
            sentence[:] = [word if len(word) <= number else rng.choice(fitting) for word in sentence]
            sentence[0] = rng.choice(fitting)
        return
    _put_word(document, constraint, rng.choice(fitting), rng)


def _put_word(document: Document, constraint: Constraint, word: str, rng: random.Random) -> None:
    """Let the document's word of that place be `word`."""
    if constraint.which == "last":
        document[-1][-1][-1] = word
        return
    place = 1 if constraint.which == "first" else constraint.which
    first = document[0][0]
    _resize(first, max(place, len(first)), lambda: rng.choice(VOCABULARY))
    first[place - 1] = word


def _set_text(document: Document, constraint: Constraint, rng: random.Random) -> None:
    if constraint.part == "word":
        _put_word(document, constraint, constraint.text, rng)
        return
    wanted = constraint.text.split()
    if constraint.part == "sentence":
        groups = [[[sentence]] for sentence in _sentences_of(document, constraint)]
    elif constraint.part == "paragraph":
        groups = [[paragraph] for paragraph in _paragraphs_of(document, constraint)]
    else:
        groups = [document]
    for group in groups:  # words are replaced one for one, so that their number stays
        first, last = group[0][0], group[-1][-1]
        match constraint.place:
            case "begins":
                first[: len(wanted)] = wanted
            case "ends":
                last[-len(wanted) :] = wanted
            case "is":
                group[:] = [[wanted]]
            case "contains":
                last[: len(wanted)] = wanted

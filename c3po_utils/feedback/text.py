"""How text is read: one spelling, whole words, sentences, list items, phone numbers."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import regex

_SPELLING = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
    | dict.fromkeys("\u2010\u2011", "-")
    | dict.fromkeys("\u00a0\u202f\u205f\u3000", " ")
    | dict.fromkeys(map(chr, range(0x2000, 0x200B)), " ")
    | dict.fromkeys("\u2028\u2029\u0085", "\n")
    | dict.fromkeys("\ufe0e\ufe0f\u200b\u2060\ufeff\u00ad")  # variation selectors, invisible marks: gone
)

# A letter or digit of a script with spaces between words (not Thai, Lao, Burmese, Khmer, Chinese, Japanese).
_WORD = r"[^\W_\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
# Vowel signs of the scripts of India, which are part of a word, and no \w of `re`.
_SIGNS = "".join(sign for sign in map(chr, range(0x900, 0xE00)) if unicodedata.category(sign).startswith("M"))
_INDIAN = re.compile(rf"(?=[\u0900-\u0dff])[\w{_SIGNS}]")
_INDIAN_WORD = rf"[^\W_]|[{_SIGNS}]"

PHONE_NUMBER = re.compile(
    r"""(?<![\w/+-]) (?<!\d[.,]) (?:
      \+\d (?:[ ().-]{0,2}\d){7,14}                                      # +44 20 7946 0958
    | (?:1[ .–-]?)? \(?[2-9]\d\d (?:\)?[ .–-]{1,2}|\)) \d{3} [ .–-] \d{4}  # (555) 123-4567, 1-800-555-0199
    | 1?[2-9]\d\d[2-9]\d{6}                                              # 5552345678
    | 1-8\d\d- (?=[\d-]*[A-Z]) [\dA-Z] (?:-?[\dA-Z]){6,}                 # 1-800-FLOWERS
    | 555[–-]\d{4}                                                       # 555-0199
    | (?![01 .-]{9}) (?!\d\d[./-]\d\d?[./-]\d{4}\b)                       # no 05.06.2024 9 Uhr
      \(?0\d (?:[ ()/.-]{0,2}\d){7,10}                                  # 020 7946 0958, 01 23 45 67 89
    ) (?!\w|[.,:/-]\d)""",
    re.VERBOSE,
)
BULLET = re.compile(r"^[ \t>]*[-*+•‣◦▪▫●○■□–·✓✔✅➢➤🔹🔸][ \t]++(?=.*[^\W_])", re.MULTILINE)
NUMBER = re.compile(r"^[ \t>#*_]*\(?\d{1,3}(?:[.)]|\u20e3)(?=[ \t*_].*[^\W_])", re.MULTILINE)
FINAL_QUESTION = re.compile(r"(?>.*[?？؟])(?:[^\w.…。]|_)*\Z", re.DOTALL)  # the last mark, or none
OPENING = re.compile(r"[\s\"'`*_#>(\[]*")  # what may stand before an answer's first word

_LETTERS = regex.compile(r"[\p{L}\p{N}\p{M}_]+")  # with the marks that are vowels in Hindi, which are no \w of `re`
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")
_TO_THE_LAST = re.compile(rf".*(?:{_INDIAN_WORD})", re.DOTALL)
_FENCED = re.compile(r"^[ \t]*```.*?(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} .*$", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?…]+(?![\w,;:/-])|[。！？]+|\n\s*\n")
_TITLE = re.compile(  # what a dot may follow without ending a sentence
    r"\b(?:[A-HJ-Z]|(?i:mr|mrs|ms|dr|prof|st|mt|jr|sr|gen|capt|sgt|lt|rev|vs|cf|fig|approx|e\.g|i\.e))\Z"
)
_ABBREVIATION = re.compile(r"\b(?i:etc|a\.m|p\.m|u\.s|no)\Z")  # the same, if no capital comes next


def one_spelling(text: str) -> str:
    """`text` in NFC with straight quotes, plain spaces and hyphens, `\\n` for every line break."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.isascii() else unicodedata.normalize("NFC", text.translate(_SPELLING))


@lru_cache(maxsize=4096)
def normalise(text: str) -> str:
    """`text` in one spelling, without white space at its ends."""
    return one_spelling(text).strip()


def cleaned(text: str) -> str:
    """`text`, normalised, up to its last letter or digit: no punctuation, quotes or emoji at its end."""
    last = _TO_THE_LAST.match(normalise(text))
    return last.group() if last else ""


def _goes_on(char: str) -> str:
    """What beside this end of a text would go on with its word; nothing where it ends in no letter or digit."""
    if _INDIAN.match(char):
        return _INDIAN_WORD
    return _WORD if re.match(_WORD, char) else ""


@lru_cache(maxsize=4096)
def whole_words(text: str, case_sensitive: bool) -> re.Pattern:
    """A pattern for `text`: "lol" is not in "lollipop", but "&" is in "R&D"; a space is any white space."""
    text = normalise(text)
    before = f"(?<!{word})" if (word := _goes_on(text[0])) else ""
    after = f"(?!{word})" if (word := _goes_on(text[-1])) else ""
    words = r"\s+".join(map(re.escape, text.split()))
    # Case is no matter of what stands beside, and Python takes three times as long to compile _WORD without it.
    return re.compile(before + (words if case_sensitive else f"(?i:{words})") + after)


@lru_cache(maxsize=4096)
def caseless(text: str) -> str:
    """`text`, normalised, where neither case nor the kind of white space tells texts apart."""
    return " ".join(normalise(text).casefold().split())


def folded(text: str) -> str:
    """The letters and digits of `text`, words apart by a space: nothing else tells two texts apart."""
    return " ".join(_LETTERS.findall(unicodedata.normalize("NFKC", text).casefold()))


def occurs(text: str, answer: str, case_sensitive: bool) -> bool:
    """Whether the normalised `answer` has `text` as whole words."""
    if caseless(text).split()[0] not in caseless(answer):  # by far the most common case, and ten times as fast
        return False
    return whole_words(text, case_sensitive).search(answer) is not None


def ends_with(answer: str, text: str, case_sensitive: bool) -> bool:
    """Whether the normalised `answer` has `text` as its last words."""
    words = normalise(text).split()
    last_words = " ".join(answer.rsplit(maxsplit=len(words))[-len(words) :])
    place = len(last_words) - len(" ".join(words))
    return whole_words(text, case_sensitive).match(last_words, place) is not None


def count_items(marker: re.Pattern, text: str) -> int:
    """Lines that start with the marker, BULLET or NUMBER, outside fenced code."""
    return len(marker.findall(_FENCED.sub("", text) if "```" in text else text))


def _ends_sentence(text: str, end: re.Match) -> bool:
    if end.group() != ".":
        return True
    start, stop = max(0, end.start() - 7), end.start()
    follows = text[end.end() : end.end() + 2].strip()
    abbreviated = _ABBREVIATION.search(text, start, stop) and (follows.islower() or follows.isdigit())
    return not (follows and (abbreviated or _TITLE.search(text, start, stop)))


def sentences(text: str) -> list[str]:
    """Stretches with a letter or digit, up to . ! ? … or the end of a heading, a paragraph, a list item or the text."""
    text = NUMBER.sub("\n\n", BULLET.sub("\n\n", _HEADING.sub(r"\g<0>\n\n", text)))
    ends = [end.end() for end in _SENTENCE_END.finditer(text) if _ends_sentence(text, end)]
    parts = zip([0, *ends], [*ends, len(text)], strict=True)
    return [text[start:end].strip() for start, end in parts if _LETTER_OR_DIGIT.search(text, start, end)]


def words(text: str) -> list[str]:
    """Stretches between white space that hold a letter or digit: "well-known" is one, "&" is none."""
    return re.findall(r"[^\W_]\S*", text)

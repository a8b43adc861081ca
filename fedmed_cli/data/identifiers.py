"""Find identifiers of patients that patterns can find, in questions and answers: of hospitals' files, and of a chat.

The kinds are those of the Safe Harbor list (45 CFR 164.514(b)(2)) that have a form of their own. Names and
addresses are found where a word says what they are, not reliably: this is a warning light, no de-identification.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Literal

Mode = Literal["off", "warn", "block", "redact"]
MODES: tuple[Mode, ...] = ("off", "warn", "block", "redact")
NOTICE = (
    "patterns find identifiers that have a form of their own; names and addresses are not reliably found, "
    "so the data are not de-identified"
)

SOURCE = "45 CFR 164.514(b)(2), Safe Harbor"
_DASH = r"[-.\u2010-\u2015 ]"
_MONTHS = (
    "Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|"
    "Nov(?:ember)?|Dec(?:ember)?"
)
_MONTH = rf"(?:{_MONTHS}|{_MONTHS.upper()})"
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_YEAR = r"(?:1[89]|20)\d\d"
_TH = r"(?:st|nd|rd|th)?"
_NUMBER = rf"(?:\+?1{_DASH}?)?(?:\(\d{{3}}\){_DASH}?|\d{{3}}{_DASH})\d{{3}}{_DASH}\d{{4}}(?!\d)"
_ABROAD = rf"\+\d{{1,3}}(?:{_DASH}?\(?\d{{1,5}}\)?){{2,6}}"
_BRITISH = r"0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,4}(?!\w)"
_PHONE = (
    rf"(?:(?<![\w.+-]){_NUMBER}|(?<!\w){_ABROAD}|(?<![\w.+-]){_BRITISH}"
    rf"|(?<![\w.+-])1{_DASH}8\d\d{_DASH}[A-Z\d](?:{_DASH}?[A-Z\d]){{5,9}}\b)"
)
_NO = r"(?:\s*(?:number|num|no\.?|nr\.?|id|code|\#))*\s*(?:is|was)?\s*[:#=]?\s*"
# A code: letters, digits and dashes with at least four digits in it.
_CODE = r"(?=(?:[A-Z-]*\d){4})[A-Z\d][A-Z\d-]{3,24}\b"

# Forms of a day or a month; no group may stand before it where it is a part of a pattern.
_DATE = (
    rf"(?<![\w./-]){_YEAR}([-/.])(?:0?[1-9]|1[0-2])\1{_DAY}(?![\w/-])(?!\.\d)"
    rf"|(?<![\w./-]){_DAY}([-/.]){_DAY}\2(?:{_YEAR}|\d\d)(?![\w/-])(?!\.\d)"
    rf"|(?<!\w){_DAY}{_TH}(?: of)?[ -]{_MONTH}\b\.?,?(?:[ -]{_YEAR}\b)?"
    rf"|\b{_MONTH}\b\.?\s+{_DAY}{_TH}\b(?!%)(?:,?\s+{_YEAR}\b)?|\b{_MONTH}\b\.?,?\s+{_YEAR}\b"
    rf"|(?<!\w){_DAY}{_TH}[ -](?i:{_MONTHS})\b\.?,?[ -]{_YEAR}\b|(?<!\w)(?i:{_MONTHS})\.? {_DAY}{_TH},? {_YEAR}\b"
)

_CAPITALISED = r"[A-Z][a-z\u00df-\u00ff'-]{1,30}"

# In this order: what an earlier kind has taken, a later one does not count again.
KINDS: dict[str, re.Pattern[str]] = {
    "url": re.compile(
        r"\bhttps?://[^\s<>\"')\]]+|\bwww\.[^\s<>\"')\]]+|\bftp://[^\s<>\"')\]]+"
        r"|(?<![@\w.-])(?:[a-z\d-]{1,63}\.){1,8}(?:com|org|gov|edu|net|info|io)\b(?:/[^\s<>\"')\]]*)?",
        re.IGNORECASE,
    ),
    "email": re.compile(r"\b[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}\b"),
    "ip": re.compile(
        r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?!\.?\d)"
        r"|(?<![\w:])(?:[\da-f]{1,4}:){7}[\da-f]{1,4}\b|(?<![\w:])(?:[\da-f]{1,4}:){1,6}(?::[\da-f]{1,4}){1,6}\b",
        re.IGNORECASE,
    ),
    "ssn": re.compile(
        r"(?<![\w-])(?!000|666|9\d\d)\d{3}([-\u2010-\u2013 ])(?!00)\d{2}\1(?!0000)\d{4}(?![\w-])"
        rf"|\b(?:ssn|social security){_NO}\d{{3}}[- ]?\d{{2}}[- ]?\d{{4}}\b",
        re.IGNORECASE,
    ),
    "fax": re.compile(
        rf"(?<=\bfax)\b[^\d\n+(]{{0,15}}{_PHONE}|(?<=\bfacsimile)\b[^\d\n+(]{{0,15}}{_PHONE}", re.IGNORECASE
    ),
    "mrn": re.compile(
        rf"\b(?:mrn|medical record|patient (?:id|no\.?|number)|hospital (?:id|no\.?|number)|chart (?:id|no\.?|number)"
        rf"|record (?:no\.?|number)|case (?:no\.?|number)){_NO}{_CODE}",
        re.IGNORECASE,
    ),
    "health_plan": re.compile(
        rf"\b(?:member|beneficiary|subscriber|health plan|insurance|policy|medicare|medicaid|group){_NO}{_CODE}"
        rf"|\bnhs{_NO}\d{{3}}[ -]?\d{{3}}[ -]?\d{{4}}\b",
        re.IGNORECASE,
    ),
    "vehicle": re.compile(
        r"\b(?=[A-Z\d]*\d)(?=[A-Z\d]*[A-Z])[A-HJ-NPR-Z\d]{11}\d{6}\b"
        rf"|\b(?:(?:licen[cs]e |number )?plate)\b{_NO}(?=[A-Z -]*\d)[A-Z\d]{{1,4}}[ -]?[A-Z\d]{{2,5}}\b"
        rf"|\bvin{_NO}[A-HJ-NPR-Z\d]{{17}}\b",
        re.IGNORECASE,
    ),
    "account": re.compile(
        rf"\b(?:account|acct\.?|iban|credit card|card|invoice|billing){_NO}{_CODE}"
        r"|(?-i:\b[A-Z]{2}\d{2}(?: ?[A-Z\d]{4}){3,7}(?: ?[A-Z\d]{1,3})?\b)|(?<![\w-])(?:\d{4}[- ]){3}\d{4}(?![\w-])",
        re.IGNORECASE,
    ),
    "licence": re.compile(
        rf"\b(?:licen[cs]e|lic\.|certificate|certification|dea|npi|driver'?s licen[cs]e|passport){_NO}{_CODE}",
        re.IGNORECASE,
    ),
    "device": re.compile(
        rf"\b(?:serial|s/n|sn|device|implant|pacemaker|defibrillator|udi|imei|lot|model){_NO}{_CODE}"
        r"|\b(?:[\da-f]{2}[:-]){5}[\da-f]{2}\b",
        re.IGNORECASE,
    ),
    "birth_date": re.compile(
        rf"\b(?i:dob|d\.o\.b\.?|born|date of birth|birth ?date|birthday)\b"
        rf"[\s:]{{0,4}}(?i:on|is|was)?\s{{0,2}}(?:{_DATE})"
    ),
    "date": re.compile(_DATE),
    "telephone": re.compile(
        rf"{_PHONE}|\b(?:tel|telephone|phone|mobile|cell|pager)\b[^\d\n+(]{{0,12}}\+?\(?\d[\d(). /-]{{5,16}}\d\b"
    ),
    "name": re.compile(
        rf"(?:\b(?i:name is|name:)\s{{1,3}}|\b(?:Mr|Mrs|Ms|Miss)\.?\s){_CAPITALISED}(?:\s{_CAPITALISED}){{0,3}}"
    ),
    "address": re.compile(
        rf"(?<![\w.])\d{{1,5}}[a-zA-Z]?\s(?:{_CAPITALISED}\s){{1,3}}"
        r"(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Close|Court|Ct|Way|Place|Boulevard|Blvd)\b"
        r"|(?<![\w-])[A-Z]{1,2}\d[A-Z\d]? \d(?!M[GLM]|CM|IU)[A-Z]{2}(?![\w-])"
    ),
    "zip": re.compile(
        r"(?<![\w-])\d{5}-\d{4}(?![\w-])|\b(?:A[KLRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|"
        r"O[HKR]|PA|RI|S[CD]|T[NX]|UT|V[AT]|W[AIVY])\.?,?\s+\d{5}\b|(?i:\bzip(?: ?code)?\W{0,3}\d{5}\b)"
    ),
    "age": re.compile(
        r"(?<![\w.-])(?:9\d|1[0-2]\d)[- ]?(?:years?|yrs?|y)[- ./]*(?:old|o\b|of age)"
        r"|(?<![\w.-])(?:9\d|1[0-2]\d) ?y/?o\b"
        r"|\bage[ds]?:?(?: of| is)? (?:9\d|1[0-2]\d)\b(?![%.]?\d)(?! ?(?:%|percent|month|day|week))"
        r"|\bninety[- ]?(?:one|two|three|four|five|six|seven|eight|nine)?[- ]years?[- ]old",
        re.IGNORECASE,
    ),
}
# What a part of a text must hold before a kind's pattern is tried on it: so many digits, and one of these marks
# in lower case. Most texts hold none, and a scan of a million rows is then ten times as fast.
_URL_MARKS = ("://", "www.", ".com", ".org", ".gov", ".edu", ".net", ".info", ".io")
_NAME_MARKS = ("name is ", "name: ", "mr ", "mr. ", "mrs ", "mrs. ", "ms ", "ms. ", "miss ")
_NEEDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "url": (0, _URL_MARKS),
    "email": (0, ("@",)),
    "ip": (3, (".", ":")),
    "ssn": (9, ()),
    "fax": (7, ("fax", "facsimile")),
    "mrn": (4, ("mrn", "record", "patient", "hospital", "chart", "case")),
    "health_plan": (
        4,
        ("member", "beneficiary", "subscriber", "plan", "insurance", "policy", "medicare", "medicaid", "group", "nhs"),
    ),
    "vehicle": (1, ()),
    "account": (4, ()),
    "licence": (4, ("licen", "lic.", "certificat", "dea", "npi", "passport")),
    "device": (2, ()),
    "birth_date": (2, ("dob", "d.o.b", "born", "birth")),
    "date": (1, ()),
    "telephone": (4, ()),
    "zip": (5, ()),
    "name": (0, _NAME_MARKS),
    "address": (1, ()),
    "age": (0, ("9", "10", "11", "12", "inety")),
}
_DIGITS = re.compile(r"\d+")
_WITHOUT_DIGITS = ("@", *_URL_MARKS, *_NAME_MARKS, "inety")
_REACH = 64


def find(text: str) -> list[tuple[int, int, str]]:
    """Where identifiers stand in `text`: start, end and kind, in order, none overlapping."""
    found: list[tuple[int, int, str]] = []
    taken = bytearray(len(text))
    for start, end, digits in _find_windows(text):
        part = text[start:end].lower()
        for kind, pattern in KINDS.items():
            least, marks = _NEEDS[kind]
            if digits < least or (marks and not any(mark in part for mark in marks)):
                continue
            for match in pattern.finditer(text, start, end):
                a, b = match.span()
                if not any(taken[a:b]):
                    taken[a:b] = bytes([1]) * (b - a)
                    found.append((a, b, kind))
    return sorted(found)


def _find_windows(text: str) -> Iterator[tuple[int, int, int]]:
    """The parts of `text` around digits, with how many there are.

    Where a mark of a kind without digits stands in it, the whole text comes first, as a part with 0 digits.
    """
    lower = text.lower()
    if any(mark in lower for mark in _WITHOUT_DIGITS):
        yield 0, len(text), 0
    start = end = -1
    digits = 0
    for match in _DIGITS.finditer(text):
        first, last = match.span()
        if start >= 0 and first > end:
            yield start, end, digits
            start = -1
        if start < 0:
            start, digits = max(first - _REACH, end, 0), 0
        digits += last - first
        if last + _REACH > end:
            end = min(last + _REACH, len(text))
            # A window ends at white space, so that no identifier is cut.
            while end < len(text) and not text[end].isspace():
                end += 1
    if start >= 0:
        yield start, end, digits


def count(text: str) -> Counter[str]:
    """How many identifiers of each kind `text` holds."""
    return Counter(kind for _, _, kind in find(text))


def redact(text: str) -> str:
    """`text` with every identifier replaced by its kind, such as [DATE]."""
    parts, at = [], 0
    for start, end, kind in find(text):
        parts += [text[at:start], f"[{kind.upper()}]"]
        at = end
    return "".join([*parts, text[at:]])

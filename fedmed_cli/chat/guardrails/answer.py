"""What a generated answer must not pass without: a dose, a word about stopping a medicine, a reassurance."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fedmed_cli.chat.guardrails import patterns
from fedmed_cli.chat.guardrails.findings import MAX_CHARACTERS, OWN_SOURCE, Finding, Kind, Level

# Each with the kind of question whose notice has said it already.
ANSWERS: Mapping[str, tuple[re.Pattern[str], Kind | None]] = {
    "dose": (
        re.compile(
            r"(?i)(?<![\d.,])\d[\d.,]{0,9}\s?(?:-|to)?\s?[\d.,]{0,9}\s?"
            r"(?:mg|mcg|µg|micrograms?|milligrams?|ml|millilit\w+|units|iu|tablets?|pills|capsules|puffs)\b"
        ),
        Kind.DOSING,
    ),
    "stopping": (
        re.compile(
            r"(?i)\b(?:stop|discontinue|quit|avoid) (?:taking|using) (?:your|the|any|all|this|that|these)? ?\w* ?"
            r"(?:medic\w+|pills?|tablets?|insulin|antibiotics?|antidepressants?|drugs?|treatment)"
        ),
        Kind.STOPPING,
    ),
    "reassures": (
        re.compile(
            r"(?i)\b(?:no need to (?:see|worry|call|go)|(?:not|nothing) (?:a )?(?:serious|to worry about"
            r"|an emergency|dangerous)|(?:you are|you're) (?:fine|healthy|not having)"
            r"|do(?:n't| not) need to (?:see|call|go)|completely (?:normal|harmless)|will go away on its own)"
        ),
        None,
    ),
}


def check_answer(text: str, question: Sequence[Finding] = ()) -> tuple[Finding, ...]:
    """What an answer holds that the findings about its question have not said."""
    notices = patterns.load().notices
    asked_about = {finding.kind for finding in question}
    return tuple(
        Finding(
            f"answer-{name}",
            Kind.ANSWER,
            Level.NOTICE,
            match.start(),
            match.end(),
            notices[f"answer_{name}"],
            OWN_SOURCE,
        )
        for name, (expression, kind) in ANSWERS.items()
        if kind not in asked_about and (match := expression.search(text[:MAX_CHARACTERS]))
    )

"""Work that is counted instead of timed: comparisons of strings, and calls of functions."""

import sys


class Counted(str):
    """A string that counts how often one is compared."""

    comparisons = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        Counted.comparisons += 1
        return str.__eq__(self, other)

    def lower(self):
        return Counted(str.lower(self))


class TooMuchWork(BaseException):
    """More calls than allowed. Not an Exception, so that nothing in fedmed could catch it."""


def count_calls(work, limit=None):
    """Run `work` and return how many functions it called, of Python or of C; TooMuchWork where they pass `limit`."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        if event in ("call", "c_call"):
            calls += 1
            if limit is not None and calls > limit:
                raise TooMuchWork(f"more than {limit:,} calls")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls

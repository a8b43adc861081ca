"""The privacy ledger: nothing that was spent is forgotten, whatever happens to the file or the process."""

import dataclasses
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedmed_cli.data.examples import Example
from fedmed_cli.errors import ConflictError, InputError
from fedmed_cli.federation.private_training import Account, PrivateRun, describe_data, list_spent
from fedmed_cli.records.privacy import LedgerEntry, Mechanism
from fedmed_cli.trust import chain as chain_module
from fedmed_cli.trust.chain import START
from fedmed_cli.trust.ledger import Ledger

RUN = PrivateRun(Mechanism(1.0, 20.0, 5), 1.0, "example", 1e-5)
ROWS = [Example(str(n), f"What is {n}?", f"It is {n}.", {}) for n in range(60)]


@pytest.fixture
def book(tmp_path):
    return Ledger(tmp_path / "config" / "privacy.jsonl", tmp_path / "work" / "seal.json")


def account(book, rows=ROWS, run=RUN, limit=None, unit="example", round_number=1, group_by=None):
    data, sketch = describe_data(rows)
    return Account(book, "A", "ab" * 32, round_number, data, sketch, len(rows), unit, run, limit, group_by)


def fresh():
    return os.urandom(32).hex()


def enter(*args, **options):
    return account(*args, **options).enter(fresh())


def test_trainings_on_the_same_records_compose(book):
    first, second = enter(book), enter(book, round_number=2)
    assert first.total_epsilon == first.epsilon == second.epsilon
    assert second.epsilon < second.total_epsilon < 2 * second.epsilon
    assert [entry.round for entry in book.read()] == [1, 2]


@pytest.mark.parametrize(
    "rows", [ROWS[::-1], [*ROWS, *(dataclasses.replace(r, question=r.question + "?") for r in ROWS)]]
)
def test_another_order_and_a_file_that_has_grown_are_the_same_records(rows, book):
    enter(book)
    later = enter(book, rows=rows)
    assert later.total_epsilon > later.epsilon


@pytest.mark.slow
def test_other_records_have_an_account_of_their_own(book):
    enter(book)
    others = [dataclasses.replace(row, answer="Something else.") for row in ROWS]
    assert enter(book, rows=others).total_epsilon == pytest.approx(enter(book, rows=ROWS[:0] + others).epsilon)
    assert len(list_spent(book.read(), 8.0)) == 2


def test_a_budget_refuses_before_training_and_again_before_anything_leaves(book):
    spent = enter(book).epsilon
    limit = 1.2 * spent
    with pytest.raises(InputError, match=f"above the budget of {limit:g}; {spent:.3g} is spent"):
        account(book, limit=limit).check()
    one, two = account(book, limit=1.5 * spent), account(book, limit=1.5 * spent)
    one.check()
    two.check()  # two processes at once: both were allowed to train, one may enter
    one.enter(fresh())
    with pytest.raises(InputError, match="above the budget"):
        two.enter(fresh())
    assert len(book.read()) == 2


def test_a_training_without_noise_leaves_no_bound(book):
    assert enter(book, run=None) is None
    assert enter(book).total_epsilon is None
    with pytest.raises(InputError, match="trained on before without a guarantee"):
        account(book, limit=100.0).check()
    with pytest.raises(InputError, match="this training has no guarantee"):
        account(book, run=None, limit=100.0).check()
    (spent,) = list_spent(book.read(), 8.0)
    assert (spent.trainings, spent.without_guarantee, spent.epsilon, spent.left) == (2, 1, None, None)


def test_what_holds_for_examples_does_not_hold_for_groups_but_the_other_way_round(book):
    enter(book)
    assert enter(book, run=dataclasses.replace(RUN, unit="group"), unit="group").total_epsilon is None
    assert enter(book).total_epsilon is not None


def test_what_holds_for_the_groups_of_one_column_does_not_hold_for_those_of_another(book):
    by = {"run": dataclasses.replace(RUN, unit="group"), "unit": "group"}
    assert enter(book, **by, group_by="visit").total_epsilon is not None
    assert enter(book, **by, group_by="visit").total_epsilon is not None
    assert enter(book, **by, group_by="patient").total_epsilon is None


@pytest.mark.slow
def test_what_is_left_is_counted_in_trainings_like_the_newest(book):
    epsilon = enter(book).epsilon
    (spent,) = list_spent(book.read(), 3 * epsilon)
    assert spent.left == pytest.approx(2 * epsilon)
    assert spent.more >= 2  # epsilon grows more slowly than the number of trainings
    for number in range(spent.more):
        account(book, limit=3 * epsilon, round_number=2 + number).enter(fresh())
    with pytest.raises(InputError):
        account(book, limit=3 * epsilon).check()


def test_a_training_that_was_entered_and_killed_before_it_was_filed_counts_once(book):
    adapter, spent = fresh(), enter(book, round_number=1).epsilon
    one = account(book, round_number=2, limit=1.8 * spent)
    first = one.enter(adapter)
    assert one.enter(adapter) == first
    assert len(book.read()) == 2
    with pytest.raises(InputError, match="above the budget"):
        one.enter(fresh())


@pytest.mark.parametrize("kind", ["taken out", "changed", "the last one", "another ledger", "no ledger"])
def test_a_ledger_that_forgets_is_refused(kind, book):
    for number in range(1, 4):
        enter(book, round_number=number)
    lines = book.path.read_bytes().splitlines(keepends=True)
    damaged = {
        "taken out": [lines[0], lines[2]],
        "changed": [lines[0].replace(b'"steps": 5', b'"steps": 1'), *lines[1:]],
        "the last one": lines[:2],
        "another ledger": [],
        "no ledger": None,
    }[kind]
    if damaged is None:
        book.path.unlink()
    else:
        book.path.write_bytes(b"".join(damaged))
    with pytest.raises(ConflictError):
        book.read()


def test_a_damaged_line_is_named(book):
    enter(book)
    book.path.write_bytes(b"{}\n" + book.path.read_bytes())
    with pytest.raises(InputError, match="jsonl:1"):
        book.read()


def test_a_torn_last_line_does_not_count_and_is_said(book):
    enter(book)
    whole = book.path.read_bytes()
    book.path.write_bytes(whole + whole[:100])
    said = []
    assert len(dataclasses.replace(book, say=said.append).read()) == 1
    assert len(said) == 1
    enter(book)
    assert book.path.read_bytes().startswith(whole)
    assert len(book.read()) == 2


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(6))
def test_a_kill_at_any_write_forgets_nothing_that_could_leave(step, book, monkeypatch):
    """What is entered may not leave, if the process dies between; what leaves is entered."""
    enter(book)
    calls = iter(range(100))

    def dying(real):
        def call(*args):
            if next(calls) == step:
                raise _Killed
            return real(*args)

        return call

    for place, name in ((os, "fsync"), (os, "ftruncate"), (chain_module, "write_all"), (chain_module, "write_file")):
        monkeypatch.setattr(place, name, dying(getattr(place, name)))
    finished = False
    try:
        enter(book, round_number=2)
        finished = True
    except _Killed:
        pass
    monkeypatch.undo()
    assert [entry.round for entry in book.read()] in ([[1, 2]] if finished else [[1], [1, 2]])
    enter(book, round_number=3)
    assert book.read()[-1].round == 3


@pytest.mark.slow
def test_many_threads_at_once_enter_one_after_the_other(book):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: enter(book, round_number=number), range(1, 13)))
    assert sorted(entry.round for entry in book.read()) == list(range(1, 13))


def test_it_holds_numbers_and_digests_only(book):
    enter(book)
    (entry,) = book.read()
    assert entry.previous == START
    value = json.loads(book.path.read_bytes())
    texts = [text for text in value.values() if isinstance(text, str)]
    assert not any(row.question in text or row.answer in text for row in ROWS for text in texts)
    assert LedgerEntry.from_dict(value, "the line") == entry
    assert book.path.stat().st_mode & 0o077 == 0


def test_a_workspace_that_was_copied_back_does_not_matter(book, tmp_path):
    """The seal of an old copy of the workspace knows fewer lines: that is no fault of the ledger."""
    enter(book)
    shutil.copy(book.seal, tmp_path / "old")
    enter(book, round_number=2)
    shutil.copy(tmp_path / "old", book.seal)
    assert len(book.read()) == 2

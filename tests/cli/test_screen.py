"""What a model writes, on a terminal."""

import pytest
from helpers.counted import count_calls

from fedmed_cli.cli.screen import Screen

ADDRESS = "https://evil.example/phish"
LINKS = {
    "link": f"See [https://www.nhs.uk/]({ADDRESS}) now.",
    "link with a title": f'See [the NHS]({ADDRESS} "https://www.nhs.uk/") now.',
    "link by reference": f"See [the NHS][1] now.\n\n[1]: {ADDRESS}\n",
    "address": f"See <{ADDRESS}> now.",
    "picture": f"See ![https://www.nhs.uk/]({ADDRESS}) now.",
    "picture in a link": f"See [![https://www.nhs.uk/](x.png)]({ADDRESS}) now.",
    "in a list": f"- one\n- [https://www.nhs.uk/]({ADDRESS})\n",
    "in a table": f"| a | b |\n| - | - |\n| 1 | [https://www.nhs.uk/]({ADDRESS}) |\n",
    "in a title": f"# [https://www.nhs.uk/]({ADDRESS})\n",
}


@pytest.fixture(params=[80, 160])
def terminal(request, monkeypatch):
    """A screen whose stdout passes for a terminal of this width."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Screen()


@pytest.mark.parametrize("kind", LINKS)
def test_a_link_in_an_answer_cannot_be_clicked(kind, terminal, capsys):
    with terminal.answer("label") as on_text:
        for start in range(0, len(LINKS[kind]), 7):
            on_text(LINKS[kind][start : start + 7])
    terminal.side_by_side([("base", LINKS[kind]), ("adapter", "Rest.")], "label")
    out = capsys.readouterr().out
    assert "\x1b[" in out  # it was drawn as on a terminal
    assert "\x1b]8" not in out


def test_a_link_shows_where_it_leads(terminal, capsys):
    terminal.side_by_side([("base", LINKS["link"]), ("adapter", LINKS["link with a title"])], "label")
    out = "".join(capsys.readouterr().out.split())
    assert out.count("evil.example") == 2


@pytest.mark.parametrize("terminal", [80], indirect=True)
@pytest.mark.parametrize("text", [pytest.param("[[[[", marks=pytest.mark.slow), "a a "])
@pytest.mark.slow
def test_the_work_of_drawing_a_long_paragraph_grows_as_it_does(text, terminal):
    """Drawn again with every piece, four times the text would be sixteen times the work."""

    def answer(length):
        with terminal.answer("label") as on_text:
            for _ in range(length // len(text)):
                on_text(text)

    answer(10)
    calls = [count_calls(lambda length=length: answer(length)) for length in (500, 2000)]
    assert calls[1] < 8 * calls[0]

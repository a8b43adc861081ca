"""The server: OpenAI's own client, bad requests, guardrails, limits, and clients and servers that go away."""

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import httpx2
import openai
import psutil
import pytest
from helpers.browser import CHROMIUM, Browser
from helpers.factories import make_plan, make_workspace
from helpers.fake_server import ANSWER, Talker, make_server
from helpers.processes import free_port
from starlette.testclient import TestClient

from fedmed_cli.chat.conversation import DISCLAIMER, Conversation, Guarded
from fedmed_cli.chat.guardrails.findings import Finding, Kind, Level
from fedmed_cli.chat.serve import app as serving
from fedmed_cli.chat.serve import requests
from fedmed_cli.chat.serve.app import Limits, Server
from fedmed_cli.chat.serve.backends import UpstreamBackend
from fedmed_cli.models.engines.engine import Piece
from fedmed_cli.models.prompts import render
from fedmed_cli.records.plan import Prompt

SERVER = Path(__file__).parents[1] / "helpers/fake_server.py"
CHAT = "/v1/chat/completions"
CRISIS, EMERGENCY = "I want to kill myself", "I have crushing chest pain"


def body(question="What helps with flu?", **more):
    return {"model": "global", "messages": [{"role": "user", "content": question}]} | more


def wait_until(is_so):
    ends = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.005)


@pytest.fixture
def talker(tiny_base):
    return Talker(tiny_base)


@pytest.fixture
def log():
    return []


@pytest.fixture
def client(talker, log):
    with TestClient(make_server(talker, log=log.append).app()) as client:
        yield client


@pytest.fixture
def sdk(client):
    """OpenAI's own client, on the application without a network."""
    return openai.OpenAI(base_url="http://testserver/v1", api_key="x", http_client=client, max_retries=0)


def events(text):
    parts = [part.removeprefix("data: ") for part in text.strip().split("\n\n")]
    assert parts[-1] == "[DONE]"
    return [json.loads(part) for part in parts[:-1]]


# --- what OpenAI's client sees ------------------------------------------------------------------------


def test_the_openai_client_lists_models(sdk):
    models = {model.id: model for model in sdk.models.list()}
    assert set(models) == {"base", "global"}
    assert models["global"].model_extra["fedmed"]["adapter"] == "d" * 64


def test_the_openai_client_chats(sdk, talker):
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "What is flu?"},
        {"role": "assistant", "content": "A virus."},
        {"role": "user", "content": [{"type": "text", "text": "What helps?"}]},
    ]
    reply = sdk.chat.completions.create(model="global", messages=messages, seed=3, temperature=0.5, max_tokens=50)
    assert reply.choices[0].message.content == ANSWER
    assert reply.choices[0].finish_reason == "stop"
    ids, adapter, sampling = talker.asked[0]
    assert (sampling.max_new_tokens, sampling.temperature, sampling.seed) == (50, 0.5, 3)
    assert adapter.digest == "d" * 64
    prompt = render([*messages[:3], {"role": "user", "content": "What helps?"}], talker.tokenizer)
    assert ids == talker.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert reply.usage.prompt_tokens == len(ids)
    assert reply.usage.completion_tokens == len(ANSWER.split())
    fedmed = reply.model_extra["fedmed"]
    assert (fedmed["adapter"], fedmed["findings"], fedmed["notice"]) == ("d" * 64, [], DISCLAIMER)


def test_the_openai_client_streams(sdk):
    stream = sdk.chat.completions.create(
        **body(), stream=True, max_completion_tokens=3, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Rest and drink"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 3
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", ["drink", [" enough", "and drink"], ["nowhere"]])
@pytest.mark.slow
def test_stop_texts_end_an_answer_and_are_not_in_it(client, stop, stream):
    reply = client.post(CHAT, json=body(stop=stop, stream=stream))
    if stream:
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events(reply.text))
    else:
        text = reply.json()["choices"][0]["message"]["content"]
    expected = {"drink": "Rest and", "nowhere": ANSWER}.get(stop if isinstance(stop, str) else stop[0], "Rest")
    assert text.strip() == expected


def test_the_openai_client_gets_its_own_errors(sdk, client):
    with pytest.raises(openai.NotFoundError, match="no such model"):
        sdk.chat.completions.create(**(body() | {"model": "gpt-9"}))
    with pytest.raises(openai.BadRequestError, match="tools"):
        sdk.chat.completions.create(**body(), tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(openai.BadRequestError, match="does not fit"):
        sdk.chat.completions.create(**body("word " * 3900), max_tokens=4000)


# --- the guardrails ----------------------------------------------------------------------------------


def test_an_emergency_gets_its_notice_before_the_answer(client):
    reply = client.post(CHAT, json=body(EMERGENCY))
    text = reply.json()["choices"][0]["message"]["content"]
    assert text.startswith("This can be an emergency.")
    assert text.endswith(ANSWER)
    assert reply.headers["x-fedmed-findings"] == "emergency:urgent"
    assert reply.headers["x-fedmed-adapter"] == "d" * 64
    chunks = events(client.post(CHAT, json=body(EMERGENCY, stream=True)).text)
    assert chunks[1]["fedmed"] == {"is_notice": "urgent"}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text


def test_what_is_only_possible_follows_the_answer(client, monkeypatch):
    finding = Finding("rule", Kind.EMERGENCY, Level.POSSIBLE, 0, 4, "If this is sudden, call for help.", "a source")
    monkeypatch.setattr(requests, "guard", lambda question, guardrails: Guarded(question, (finding,), False))
    reply = client.post(CHAT, json=body())
    assert reply.headers["x-fedmed-findings"] == "emergency:possible"
    text = reply.json()["choices"][0]["message"]["content"]
    assert text == f"{ANSWER}\n\n{finding.notice}"
    chunks = events(client.post(CHAT, json=body(stream=True)).text)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
    assert [chunk["fedmed"] for chunk in chunks if "is_notice" in chunk.get("fedmed", {})] == [
        {"is_notice": "possible"}
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_crisis_gets_a_person_and_no_answer(client, talker, stream):
    reply = client.post(CHAT, json=body(CRISIS, stream=stream))
    if stream:
        chunks = events(reply.text)
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        finish, fedmed = chunks[-1]["choices"][0]["finish_reason"], chunks[-1]["fedmed"]
    else:
        value = reply.json()
        text, finish = value["choices"][0]["message"]["content"], value["choices"][0]["finish_reason"]
        fedmed = value["fedmed"]
    assert text.startswith("Please talk to a person now")
    assert (finish, fedmed["held_back"]) == ("content_filter", True)
    assert talker.asked == []


def test_an_earlier_question_that_was_held_back_is_not_shown_to_the_model(client, talker):
    history = [{"role": "user", "content": CRISIS}, {"role": "assistant", "content": "Please talk."}]
    reply = client.post(CHAT, json=body() | {"messages": [*history, *body()["messages"]]})
    assert reply.json()["fedmed"]["num_left_out"] == 1
    client.post(CHAT, json=body())
    assert talker.asked[0][0] == talker.asked[1][0]


def test_a_harmless_question_has_no_findings_and_the_log_has_no_text(client, log):
    reply = client.post(CHAT, json=body("What is xylophonitis?"))
    assert reply.headers["x-fedmed-findings"] == "none"
    assert reply.json()["fedmed"]["findings"] == []
    (line,) = log
    assert line.startswith("global: ")
    assert "xylophon" not in line
    assert "Rest" not in line


# --- bad requests ------------------------------------------------------------------------------------

MESSAGES = {
    "messages": [
        None,
        [],
        "hi",
        [{"role": "user"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "assistant", "content": "x"}],
        [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
        [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [{"role": "user", "content": "   "}],
        [{"role": "user", "content": "x" * 20_001}],
    ],
    "model": [None, 7],
    "max_tokens": [0, -1, 4097, 1.5, "9", True],
    "temperature": [-1, 2.1, "hot", True],
    "seed": [-1, 2**40, 0.5],
    "stop": [7, [""], ["a"] * 5, "x" * 101],
    "stream": [1, "true"],
    "stream_options": [[1], {"x": 1}],
    "n": [2],
    "top_p": [0.5],
    "tools": [[{}]],
    "logprobs": [True],
    "response_format": [{"type": "json_object"}],
    "frobnicate": [1],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in MESSAGES.items() for value in values])
def test_what_is_malformed_or_not_supported_gets_a_400_that_names_it(client, talker, name, value):
    reply = client.post(CHAT, json=body(**{name: value}))
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert name in error["message"]
    assert talker.asked == []


@pytest.mark.parametrize("name", ["n", "top_p", "user", "tools", "seed", "logit_bias"])
def test_what_asks_for_nothing_is_taken(client, name):
    value = {"n": 1, "top_p": 1.0, "user": "someone", "tools": [], "seed": None, "logit_bias": {}}[name]
    assert client.post(CHAT, json=body(**{name: value})).status_code == 200


@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"model": 1, "model": 2}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"{}", "text/plain", 415),
        (b" " * 1_000_001, "application/json", 413),
    ],
)
def test_odd_bodies(client, data, kind, status):
    reply = client.post(CHAT, content=data, headers={"content-type": kind})
    assert reply.status_code == status
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_without_a_length_is_bounded_too(client):
    def parts():
        for _ in range(20):
            yield b" " * 100_000

    assert client.post(CHAT, content=parts(), headers={"content-type": "application/json"}).status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", CHAT, 405), ("GET", "/v2", 404), ("POST", "/health", 405)]
)
def test_other_addresses(client, method, path, status):
    reply = client.request(method, path)
    assert reply.status_code == status
    assert reply.json()["error"]["type"] == "invalid_request_error"


# --- who may ask --------------------------------------------------------------------------------------


def test_a_key_is_asked_for(talker):
    with TestClient(make_server(talker, key="k" * 20).app()) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}):
            for reply in (client.post(CHAT, json=body(), headers=headers), client.get("/v1/models", headers=headers)):
                assert reply.status_code == 401
                assert reply.json()["error"]["code"] == "invalid_api_key"
        assert client.post(CHAT, json=body(), headers={"authorization": f"Bearer {'k' * 20}"}).status_code == 200
        assert client.get("/health").json() == {"status": "ok", "waiting": 0}


def test_a_page_of_another_site_gets_nothing(talker):
    app = make_server(talker, hosts=("127.0.0.1", "localhost")).app()
    with TestClient(app, base_url="http://evil.example") as client:
        assert client.post(CHAT, json=body()).status_code == 400
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        reply = client.post(CHAT, json=body(), headers={"origin": "http://evil.example"})
        assert "access-control-allow-origin" not in reply.headers
    app = make_server(talker, origins=("http://good.example",)).app()
    with TestClient(app) as client:
        for origin, allowed in (("http://good.example", True), ("http://evil.example", False)):
            reply = client.post(CHAT, json=body(), headers={"origin": origin})
            assert ("access-control-allow-origin" in reply.headers) == allowed


# --- limits ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_queue_refuses_and_the_others_are_answered(tiny_base):
    talker = Talker(tiny_base)
    talker.may_speak.clear()
    with TestClient(make_server(talker, limits=Limits(2, 3, 60)).app()) as client, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client.post, CHAT, json=body()) for _ in range(8)]
        refused = [future.result() for future in itertools.islice(as_completed(asked), 3)]
        assert [reply.status_code for reply in refused] == [429] * 3
        wait_until(lambda: talker.num_running == 2)
        talker.may_speak.set()
        assert sorted(future.result().status_code for future in asked) == [200] * 5 + [429] * 3
        assert talker.most_running == 2
        assert client.post(CHAT, json=body()).status_code == 200


def test_a_full_server_looks_at_no_further_body(tiny_base):
    """The guardrails read a megabyte in seconds: what is beyond the queue must not have them."""
    server = make_server(Talker(tiny_base), limits=Limits(1, 1, 60))
    with TestClient(server.app()) as client:
        assert client.post(CHAT, json={"not": "a request"}).status_code == 400
        server.num_read = 2
        assert client.post(CHAT, json={"not": "a request"}).status_code == 429
        server.num_read, server.num_waiting = 0, 2
        assert client.post(CHAT, json={"not": "a request"}).status_code == 429
        server.num_waiting = 0
        assert client.post(CHAT, json=body()).status_code == 200
        assert (server.num_read, server.num_waiting) == (0, 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.slow
def test_an_answer_that_takes_too_long_is_stopped(tiny_base, stream):
    talker = Talker(tiny_base, 0.05)
    server = make_server(talker, limits=Limits(1, 3, 0.5))
    with TestClient(server.app()) as client:
        reply = client.post(CHAT, json=body(f"SLOW\n{EMERGENCY}", stream=stream))
        if stream:  # which begins at once, with the notice
            assert events(reply.text)[-1]["error"]["message"] == "the answer took too long"
        else:
            assert reply.status_code == 504
        server.limits = Limits(1, 3, 60)
        assert client.post(CHAT, json=body(max_tokens=1)).status_code == 200
    assert talker.num_stopped == 1


def test_a_body_that_does_not_arrive_in_time_is_refused(talker, monkeypatch):
    monkeypatch.setattr(serving, "SECONDS_TO_READ", 0.05)
    sent = []

    async def send(message):
        sent.append(message)

    async def never():
        await asyncio.Event().wait()

    scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": []}
    scope["headers"].append((b"content-type", b"application/json"))
    asyncio.run(make_server(talker).app()(scope, never, send))
    assert sent[0]["status"] == 408
    assert b"the body did not arrive within" in sent[1]["body"]
    assert talker.asked == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("num_words", [0, 2])
def test_a_bug_is_said_to_be_one_and_its_text_stays_here(talker, monkeypatch, stream, num_words):
    def generate(ids, adapter, sampling):
        for _ in range(num_words):
            yield Piece("word ", 1, False)
        raise ValueError("secret")

    monkeypatch.setattr(talker, "generate", generate)
    with TestClient(make_server(talker).app(), raise_server_exceptions=False) as client:
        reply = client.post(CHAT, json=body(stream=stream))
        assert "secret" not in reply.text
        if stream and num_words:
            assert reply.status_code == 200
            found = events(reply.text)[-1]
        else:
            assert reply.status_code == 500
            found = reply.json()
        assert found["error"]["message"] == serving.BUG
        monkeypatch.undo()
        assert client.post(CHAT, json=body()).status_code == 200


@pytest.mark.slow
def test_requests_are_answered_in_the_order_in_which_they_came(tiny_base, log):
    talker = Talker(tiny_base)
    talker.may_speak.clear()
    with (
        TestClient(make_server(talker, limits=Limits(1, 10, 60), log=log.append).app()) as client,
        ThreadPoolExecutor(5) as pool,
    ):
        futures = []
        for number in range(1, 6):
            futures.append(pool.submit(client.post, CHAT, json=body(max_tokens=number)))
            wait_until(lambda number=number: client.get("/health").json()["waiting"] == number)
        talker.may_speak.set()
        assert {future.result().status_code for future in futures} == {200}
    assert [sampling.max_new_tokens for _, _, sampling in talker.asked] == [1, 2, 3, 4, 5]


def test_a_long_conversation_that_is_tokenized_holds_nobody_up(client, monkeypatch):
    entered, answered, in_time = threading.Event(), threading.Event(), []
    prompt_ids = Conversation.prompt_ids

    def slow_prompt_ids(self, question):
        entered.set()
        in_time.append(answered.wait(10))
        return prompt_ids(self, question)

    monkeypatch.setattr(Conversation, "prompt_ids", slow_prompt_ids)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(client.post, CHAT, json=body())
        assert entered.wait(10)
        assert client.get("/health").status_code == 200
        answered.set()
        assert reply.result().status_code == 200
    assert in_time == [True]


# --- another server behind ---------------------------------------------------------------------------


def upstream(handler):
    client = httpx2.AsyncClient(transport=httpx2.MockTransport(handler), base_url="http://upstream/")
    return Server(UpstreamBackend("http://upstream", Prompt("Be kind.", "Q: {question}"), None, 5, client))


def test_the_guardrails_stand_before_another_server():
    seen = []

    def handler(request):
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json={"data": [{"id": "llama"}]})
        seen.append(json.loads(request.content))
        chunks = [{"choices": [{"delta": {"content": part}}]} for part in ("Take ", "200 mg.")]
        chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        chunks.append({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}})
        return httpx2.Response(
            200, text="".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        )

    with TestClient(upstream(handler).app()) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["llama"]
        value = client.post(CHAT, json=body(EMERGENCY) | {"model": "llama", "stop": "x", "seed": 1}).json()
        assert value["choices"][0]["message"]["content"].endswith("Take 200 mg.")
        assert value["usage"]["total_tokens"] == 13
        assert [finding["rule"] for finding in value["fedmed"]["answer_findings"]] == ["answer-dose"]
        client.post(CHAT, json=body(CRISIS) | {"model": "llama"})
    assert len(seen) == 1
    assert seen[0]["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": f"Q: {EMERGENCY}"},
    ]
    assert (seen[0]["stop"], seen[0]["seed"]) == (["x"], 1)


STOP = '{"choices": [{"delta": {"content": "Hm."}, "finish_reason": "stop"}], "usage": %s}'
UNREADABLE = {
    "nonsense": "{oops",
    "cut": '{"choices": []}',
    "a list for usage": STOP % "[1]",
    "texts for numbers": STOP % '{"prompt_tokens": "many"}',
    "an endless number": STOP % '{"prompt_tokens": 1e999}',
    "an object for choices": '{"choices": {"0": 1}}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("fault", ["refused", "status", *UNREADABLE])
def test_another_server_that_fails_is_an_error_and_no_answer(fault):
    def handler(request):
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json={"data": [{"id": "llama"}]})
        if fault == "refused":
            raise httpx2.ConnectError("no")
        if fault == "status":
            return httpx2.Response(500, text="secret")
        return httpx2.Response(200, text=f"data: {UNREADABLE[fault]}\n\n")

    with TestClient(upstream(handler).app()) as client:
        reply = client.post(CHAT, json=body() | {"model": "llama"})
        assert reply.status_code == 502
        assert "upstream" in reply.json()["error"]["message"]
        assert "secret" not in reply.text


def test_half_characters_of_another_server_become_question_marks():
    def handler(request):
        if request.url.path == "/v1/models":
            return httpx2.Response(200, text='{"data": [{"id": "x\\ud800"}]}')
        chunk = '{"choices": [{"delta": {"content": "a\\ud800b"}, "finish_reason": "stop"}]}'
        return httpx2.Response(200, text=f"data: {chunk}\n\n")

    with TestClient(upstream(handler).app()) as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "x?"
        reply = client.post(CHAT, json=body() | {"model": "x?"})
        assert reply.json()["choices"][0]["message"]["content"] == "a?b"


# --- a process of its own ----------------------------------------------------------------------------


@pytest.fixture
def start(tiny_base):
    """A function that starts the scripted server; it gives the process and its address."""
    running = []

    def run(seconds_a_word):
        port = free_port()
        command = [sys.executable, str(SERVER), str(tiny_base), str(port), str(seconds_a_word)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        wait_for(port, running[-1])
        return running[-1], f"http://127.0.0.1:{port}"

    yield run
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for(port, process):
    ends = time.monotonic() + 90
    while time.monotonic() < ends and process.poll() is None:
        try:
            if httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                return
        except httpx2.HTTPError:
            time.sleep(0.1)
    raise AssertionError(f"the server did not start: {process.poll()}")


def waiting(url):
    return httpx2.get(f"{url}/health").json()["waiting"]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_stops_its_answer(start, stream):
    process, url = start(0.05)
    port = int(url.rpartition(":")[2])
    data = json.dumps(body("SLOW", stream=stream, max_tokens=4000)).encode()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        connection.sendall(head.encode() + f"content-length: {len(data)}\r\n\r\n".encode() + data)
        ends = time.monotonic() + 30
        while waiting(url) == 0 and time.monotonic() < ends:
            time.sleep(0.05)
        assert waiting(url) == 1
    ends = time.monotonic() + 30
    while waiting(url) and time.monotonic() < ends:
        time.sleep(0.05)
    assert waiting(url) == 0
    assert "broken-off" in process.stdout.readline()


@pytest.mark.slow
def test_a_killed_server_leaves_its_client_with_an_error(start):
    process, url = start(0.05)
    sdk = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
    stream = sdk.chat.completions.create(**body("SLOW", max_tokens=4000), stream=True)
    next(stream)
    process.send_signal(signal.SIGKILL)
    with pytest.raises((openai.APIConnectionError, httpx2.HTTPError)):
        list(stream)


@pytest.mark.slow
def test_a_server_that_is_asked_to_end_finishes_what_runs(start):
    process, url = start(0.05)
    sdk = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
    stream = sdk.chat.completions.create(**body("SLOW", max_tokens=30), stream=True)
    next(stream)
    process.terminate()
    chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"
    process.wait(30)


@pytest.mark.slow
def test_a_thousand_requests_leave_the_memory_as_it_was(start):
    process, url = start(0.0)
    memory = psutil.Process(process.pid).memory_info
    threading.Thread(target=lambda: [None for _ in process.stdout], daemon=True).start()
    with httpx2.Client() as client, ThreadPoolExecutor(4) as pool:

        def ask(number):
            return client.post(f"{url}{CHAT}", json=body(EMERGENCY if number % 10 == 0 else "What helps?")).status_code

        assert set(pool.map(ask, range(200))) == {200}
        before = memory().rss
        assert set(pool.map(ask, range(1000))) == {200}
        assert memory().rss < 1.05 * before


# --- the command -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("--host", "0.0.0.0"), 2, "so a key is needed"),
        (("--json",), 2, "prints no result"),
        (("--engine", "magic"), 2, "expected one of auto"),
        (("--upstream", "http://x", "--engine", "llama.cpp"), 2, "answers by itself"),
        (("--upstream", "ftp://x"), 2, "expected an address"),
        (("--api-key", "none"), 3, "cannot be read"),
    ],
)
def test_options_that_do_not_fit(argv, code, message, tmp_path, fails):
    workspace = make_workspace(tmp_path / "work", make_plan(signed=False), mailbox=False)
    assert message in fails(code, "serve", "-C", workspace.root, *argv)


def test_a_key_must_be_a_secret(tmp_path, fails):
    key = tmp_path / "key"
    key.write_text("k" * 30)
    key.chmod(0o644)
    assert "others can read this key" in fails(2, "serve", "-C", tmp_path, "--api-key", key)
    key.chmod(0o600)
    key.write_text("short")
    assert "at least 16" in fails(2, "serve", "-C", tmp_path, "--api-key", key)


def test_a_port_that_is_taken(tmp_path, fails):
    workspace = make_workspace(tmp_path / "work", make_plan(signed=False), mailbox=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in fails(5, "serve", "-C", workspace.root, "--port", port)


def test_without_the_extra_the_command_says_what_to_install(tmp_path, fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "needs the package uvicorn" in fails(5, "serve", "-C", tmp_path)


@pytest.mark.slow
@pytest.mark.real_base
@pytest.mark.network
def test_the_command_serves_the_embedded_base_and_ends_clean(tmp_path):
    from dataclasses import replace

    from fedmed_cli.models import bundled_base
    from fedmed_cli.records.lora import Lora

    plan = replace(make_plan(signed=False), base=bundled_base.BASE, lora=Lora())
    workspace = make_workspace(tmp_path / "work", plan, num_rounds=1, mailbox=False)
    port = free_port()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "fedmed_cli", "serve", "-C", str(workspace.root), "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(temporary)})
    try:
        wait_for(port, process)
        assert list(temporary.iterdir()) == []
        sdk = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0)
        names = [model.id for model in sdk.models.list()]
        assert names == ["base", "global", "A", "B", "C"]

        def ask(number):
            reply = sdk.chat.completions.create(**(body(max_tokens=12) | {"model": names[number % len(names)]}))
            return reply.choices[0].message.content, reply.model_extra["fedmed"]["adapter"]

        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(ask, range(8)))
        assert all(text for text, _ in together)
        assert len({adapter for _, adapter in together}) == 5
        assert together[0] == together[5]
        process.terminate()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert said.count(" tokens in ") == 8
    finally:
        process.kill()
        process.wait()


# --- the page ----------------------------------------------------------------------------------------


def test_the_page_takes_nothing_from_elsewhere(client):
    texts = {}
    for path in serving.PAGE:
        reply = client.get(path)
        assert reply.status_code == 200
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        texts[path] = reply.text
        assert "http:" not in reply.text
        assert "https:" not in reply.text
    assert DISCLAIMER.replace(":", ":</strong>", 1) in texts["/"].replace("<strong>", "")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, which the page is opened with (Debian: chromium)")
def test_the_page_in_a_browser(start, tmp_path):
    import axe_core_python

    _, url = start(0.0)
    axe = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(f"{url}/")
        browser.wait("document.querySelectorAll('#model option').length === 2")
        violations = "axe.run().then(found => found.violations.map(one => one.id + ' ' + one.nodes[0].html))"

        def check():
            browser.run(axe)
            assert browser.run(violations) == []

        check()
        browser.run("document.getElementById('model').focus()")
        browser.press("Tab")  # by keyboard alone: from the model to the question to the button
        assert browser.run("document.activeElement.id") == "question"
        browser.type("What helps with flu?")
        browser.press("Tab")
        assert browser.run("document.activeElement.id") == "ask"
        browser.press("Enter", "\r")
        browser.wait(f"document.body.innerText.includes({json.dumps(ANSWER)})")
        browser.wait("document.getElementById('status').textContent === 'Done.'")
        assert browser.run("document.getElementById('urgent').textContent") == ""
        assert browser.run("document.activeElement.id") == "question"
        for question in (EMERGENCY, CRISIS):
            browser.type(question)
            browser.run("document.getElementById('form').requestSubmit()")
            browser.wait("document.getElementById('status').textContent === 'Done.'")
            expected = "This can be an emergency" if question == EMERGENCY else "Please talk to a person now"
            assert browser.run("document.querySelector('[role=alert]').textContent").startswith(expected)
            check()
        assert "No answer is given" in browser.run("document.querySelector('article:last-child').innerText")
    finally:
        browser.close()

"""The HTTP server over a tiny model: real sockets, many clients, clients that vanish, bodies that are wrong."""

import asyncio
import contextlib
import itertools
import json
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qwen3llada.sampling.params import AnswerParams
from qwen3llada.sampling.sampler import generate
from qwen3llada.serving.engine import Engine
from qwen3llada.serving.jobs import Job
from qwen3llada.serving.params import ServeParams
from qwen3llada.serving.progress import Progress

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")

DEFAULTS = AnswerParams(steps=16, gen_length=16)
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"


class Served:
    """A server in a thread of this process."""

    def __init__(self, text, **params):
        import uvicorn

        from qwen3llada.serving.app import build_app
        from qwen3llada.serving.stopping import stopping_server

        params = {"stop_seconds": 5} | params
        self.app = build_app(text, ServeParams(served_name="tiny", **params), DEFAULTS)
        self.scheduler = self.app.state.scheduler
        config = uvicorn.Config(self.app, port=0, log_level="warning")
        self.server = stopping_server(config, self.scheduler, params["stop_seconds"])
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        return self

    def __exit__(self, *error):
        self.client.close()
        self.server.should_exit = True
        self.thread.join()

    def post(self, path, **body):
        return self.client.post(path, json=body)


@pytest.fixture(scope="module")
def served(text):
    with Served(text) as server:
        yield server


def counters(server):
    """The server's metrics that are one number."""
    lines = server.client.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def ask(content="w1 w2 w3"):
    return [{"role": "user", "content": content}]


def events(reply):
    """The bodies of a stream of server-sent events."""
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def alone(text, prompt, *, seed, index=0, **knobs):
    """The text that the sampler alone gives to a chat of one question."""
    encoded = text.tokenizer(prompt + "\n", add_special_tokens=False)["input_ids"]
    params = DEFAULTS.model_copy(update={"steps": knobs.get("gen_length", 16), **knobs})
    answer = generate(text.model, [encoded], params, seed=seed, row_keys=[index], eos_token_ids=text.ends)
    return text.decode(answer.tokens[0])


def test_a_chat_is_what_the_sampler_says(served, text):
    body = served.post(CHAT, messages=ask(), seed=3, temperature=0.8, n=3).json()
    said = [choice["message"]["content"] for choice in body["choices"]]
    assert said == [alone(text, "w1 w2 w3", seed=3, index=i, temperature=0.8) for i in range(3)]
    assert len(set(said)) == 3
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert (body["object"], body["model"]) == ("chat.completion", "tiny")
    tokens = sum(len(s.split()) for s in said) + sum(c["finish_reason"] == "stop" for c in body["choices"])
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}


def test_a_stream_is_the_answer_in_order(served):
    whole = served.post(CHAT, messages=ask(), seed=3).json()["choices"][0]
    options = {"stream": True, "canvas": True, "logprobs": True, "stream_options": {"include_usage": True}}
    *chunks, usage = events(served.post(CHAT, messages=ask(), seed=3, **options))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(deltas) == whole["message"]["content"]
    assert sum(bool(delta) for delta in deltas) > 3
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-2:]] == [None, whole["finish_reason"]]
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == 3
    canvases = [chunk["qwen3llada"]["canvas"] for chunk in chunks[1:]]
    masks = [sum(piece == "▒" for piece, _ in canvas) for canvas in canvases]
    assert masks == sorted(masks, reverse=True)
    assert all((piece == "▒") == (sure == 0) for canvas in canvases for piece, sure in canvas)
    tokens = [
        t for chunk in chunks[1:] if chunk["choices"][0]["logprobs"] for t in chunk["choices"][0]["logprobs"]["content"]
    ]
    assert len(tokens) == usage["usage"]["completion_tokens"]


def test_log_probabilities_are_those_of_the_committed_tokens(served, text):
    from qwen3llada.sampling.trace.recording import TraceRecorder

    recorder = TraceRecorder()
    prompt = [1, 2, 3]
    params = DEFAULTS.model_copy(update={"steps": 16})
    generate(text.model, [prompt], params, seed=0, eos_token_ids=text.ends, on_step=recorder)
    choice = served.post(COMPLETE, prompt=prompt, logprobs=1, seed=0).json()["choices"][0]
    decided = recorder.row(0, 3)[: len(choice["logprobs"]["tokens"])]
    import math

    assert choice["logprobs"]["token_logprobs"] == pytest.approx([math.log(d.confidence) for d in decided], abs=1e-5)
    assert choice["logprobs"]["tokens"] == [text.tokenizer.decode([d.token]) for d in decided]
    content = served.post(CHAT, messages=ask(), logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert all(entry["logprob"] <= 0 and entry["bytes"] for entry in content)


def test_offsets_in_a_stream_are_those_of_the_whole_text(served):
    asked = {"prompt": "w1 w2 w3", "seed": 5, "temperature": 0.8, "logprobs": 1, "max_tokens": 12}
    whole = served.post(COMPLETE, **asked).json()["choices"][0]["logprobs"]
    chunks = [body["choices"][0]["logprobs"] for body in events(served.post(COMPLETE, **asked, stream=True))]
    assert len([chunk for chunk in chunks if chunk["tokens"]]) > 1
    for key in ("tokens", "token_logprobs", "text_offset"):
        assert [value for chunk in chunks for value in chunk[key]] == whole[key]
    said = served.post(COMPLETE, **asked).json()["choices"][0]["text"]
    for at, token in zip(whole["text_offset"], whole["tokens"], strict=True):
        assert said[at:].lstrip().startswith(token) or (token, at) == ("<eos>", len(said))
    assert whole["text_offset"] == sorted(whole["text_offset"])


def test_stop_strings_end_an_answer_before_them(served):
    whole = served.post(CHAT, messages=ask(), max_tokens=24).json()["choices"][0]["message"]["content"]
    words = whole.split()
    stop = f"{words[4]} {words[5]}"
    for stream in (False, True):
        reply = served.post(CHAT, messages=ask(), max_tokens=24, stop=["nothing", stop], stream=stream)
        if stream:
            chunks = events(reply)
            said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
            finish = chunks[-1]["choices"][0]["finish_reason"]
        else:
            choice = reply.json()["choices"][0]
            said, finish = choice["message"]["content"], choice["finish_reason"]
        assert (said, finish) == (whole[: whole.index(stop)], "stop")


def test_knobs_reach_the_sampler(served, text):
    knobs = {"block_length": 8, "steps": 5, "remasking": "margin"}
    reply = served.post(CHAT, messages=ask(), seed=0, max_tokens=20, **knobs).json()
    assert reply["choices"][0]["message"]["content"] == alone(text, "w1 w2 w3", seed=0, gen_length=20, **knobs)
    assert reply["qwen3llada"]["forward_passes"][0] <= 5


@pytest.mark.parametrize(
    "knobs", [{"edit_threshold": 0.02, "steps": 6}, {"remask": 3, "steps": 20, "temperature": 1.0}]
)
def test_a_token_that_may_be_revised_is_not_sent(served, text, knobs):
    """Streamed text is never taken back: it waits for the end of its block."""
    knobs |= {"block_length": 8}
    reply = served.post(CHAT, messages=ask(), seed=0, max_tokens=20, stream=True, canvas=True, **knobs)
    chunks = events(reply)
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert said == alone(text, "w1 w2 w3", seed=0, gen_length=20, **knobs)
    canvases = [[piece for piece, _ in chunk["qwen3llada"]["canvas"]] for chunk in chunks if "qwen3llada" in chunk]
    pairs = [pair for before, after in itertools.pairwise(canvases) for pair in zip(before, after, strict=True)]
    changes = [old != new for old, new in pairs if old != "▒"]
    assert any(changes)  # the canvas shows revisions


def test_completions_take_texts_and_token_ids(served, text):
    body = served.post(COMPLETE, prompt=["w5 w6", "w7"], seed=0, n=2, max_tokens=4).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    first = served.post(COMPLETE, prompt=[5, 6], seed=0, max_tokens=4).json()["choices"][0]["text"]
    assert body["choices"][0]["text"] == first
    assert body["object"] == "text_completion"


def test_a_completion_keeps_the_white_space_of_its_answer(text, monkeypatch):
    decode = text.tokenizer.decode
    monkeypatch.setattr(text.tokenizer, "decode", lambda tokens, **options: f"\n {decode(tokens, **options)}")
    with Served(text) as server:
        choice = server.post(COMPLETE, prompt="w1", seed=0, max_tokens=4).json()["choices"][0]
        chunks = events(server.post(COMPLETE, prompt="w1", seed=0, max_tokens=4, stream=True))
        chat = server.post(CHAT, messages=ask("w1"), seed=0, max_tokens=4).json()["choices"][0]
        stopped = server.post(COMPLETE, prompt="w1", seed=0, max_tokens=4, stop="\n").json()["choices"][0]
    assert choice["text"] == f"\n {choice['text'].strip()}"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]
    assert chat["message"]["content"] == chat["message"]["content"].strip() != ""
    assert (stopped["text"], stopped["finish_reason"]) == ("", "stop")


def test_earlier_turns_and_a_system_message_are_part_of_the_prompt(served):
    turns = [("developer", "w9"), ("user", "w1"), ("assistant", "w2"), ("user", [{"type": "text", "text": "w3"}])]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert served.post(CHAT, messages=messages).json()["usage"]["prompt_tokens"] == 4


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"messages": []}, "messages must be a list with at least one message", None),
        ({"messages": ask(), "stpes": 3}, "stpes: unknown field; allowed: ", "stpes"),
        ({"messages": ask(), "steps": 0}, "steps", "steps"),
        ({"messages": ask(), "steps": 2, "max_tokens": 64}, "steps=2 must be at least the number of blocks", "steps"),
        ({"messages": ask(), "temperature": "hot"}, "temperature", "temperature"),
        ({"messages": ask(), "remasking": "best"}, "must be one of low_confidence, random", "remasking"),
        ({"messages": ask(), "max_tokens": 257}, "max_tokens=257 must be a whole number from 1 to 256", "max_tokens"),
        ({"messages": ask(), "max_tokens": 256}, "must not exceed the model's max_position_embeddings=256", None),
        ({"messages": ask(), "max_tokens": 4, "max_completion_tokens": 5}, "must not differ", None),
        (
            {"messages": ask(), "max_tokens": 4, "max_completion_tokens": "4"},
            "='4' must be a whole",
            "max_completion_tokens",
        ),
        ({"messages": ask(), "stream_options": {"include_usage": True}}, "needs stream=true", "stream_options"),
        ({"messages": ask(), "stream": True, "stream_options": 0}, "=0 may hold include_usage", "stream_options"),
        (
            {"messages": ask(), "stream": True, "stream_options": {"include_usage": 1}},
            "true or false",
            "stream_options",
        ),
        (
            {"messages": ask(), "stream": True, "stream_options": {"include_obfuscation": True}},
            "alone",
            "stream_options",
        ),
        ({"messages": [*ask()[:-1], ask()[0] | {"name": "Bob"}]}, "messages[0]: name='Bob' is not supported", None),
        ({"messages": [ask()[0] | {"tool_calls": [{}]}]}, "messages[0]: tool_calls=[{}] is not supported", None),
        (
            {"messages": ask([{"type": "text", "text": "w1", "cache_control": {"type": "x"}}])},
            "messages[0]: content[0]: cache_control={'type': 'x'} is not supported",
            None,
        ),
        ({"messages": ask(["w1"])}, "messages[0]: content must be text", None),
        ({"messages": ask(), "steps": "16"}, "steps='16' must be a number, not a text", "steps"),
        ({"messages": ask(), "temperature": "0.5"}, "temperature='0.5' must be a number", "temperature"),
        ({"messages": ask(), "block_attention": "true"}, "must be true or false, not a text", "block_attention"),
        ({"messages": ask(), "user": 5}, "user=5 must be a text", "user"),
        ({"messages": ask(), "top_p": True}, "top_p=True is not supported", "top_p"),
        ({"messages": ask(), "store": 0}, "store=0 is not supported", "store"),
        ({"messages": ask(), "n": 0}, "n=0 must be a whole number from 1 to 128", "n"),
        ({"messages": ask(), "seed": -1}, "seed=-1 must be a whole number", "seed"),
        ({"messages": ask(), "stop": [""]}, "stop=[''] must be a text or a list", "stop"),
        ({"messages": ask(), "top_p": 0.5}, "top_p=0.5 is not supported", "top_p"),
        ({"messages": ask(), "tools": [{}]}, "tools=[{}] is not supported", "tools"),
        ({"messages": ask(), "stream": 1}, "stream=1 must be true or false", "stream"),
        ({"messages": ask(), "canvas": True}, "canvas=true needs stream=true", "canvas"),
        ({"messages": ask(), "parallel_blocks": True}, "parallel_blocks=true needs attention policy block", None),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "a user last; given ['assistant']", None),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0]: content must be text", None),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0]: role='bot' must be system", None),
        ({"messages": [{"role": "user", "content": " "}]}, "the question is blank", "messages"),
        ([1], "the body must be a JSON object, given list", None),
    ],
    ids=str,
)
def test_a_wrong_body_is_one_clear_line_in_openais_form(served, body, message, param):
    reply = served.client.post(CHAT, json=body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param


def test_other_refusals(served):
    assert served.client.post(CHAT, content=b"{").status_code == 400
    assert served.client.post(CHAT, content=b" " * (8 * 2**20 + 1)).status_code == 413
    reply = served.post(CHAT, messages=ask(), model="gpt")
    assert (reply.status_code, reply.json()["error"]["message"]) == (404, "model='gpt' is not served here; tiny is")
    assert served.client.get("/v1/none").json()["error"]["message"] == "GET /v1/none: no such address"
    for prompt in ([], [[]], [True], [1, "a"], None, {"a": 1}):
        assert served.post(COMPLETE, prompt=prompt).status_code == 400
    for logprobs in (True, False, "1", 2, [], {}):
        reply = served.post(COMPLETE, prompt="w1", logprobs=logprobs)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "logprobs")
    assert "holds token 64" in served.post(COMPLETE, prompt=[64]).json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", CHAT, "POST"), ("PUT", COMPLETE, "POST"), ("POST", "/health", "GET, HEAD"), ("DELETE", "/", "GET, HEAD")],
)
def test_another_method_is_told_which_are_allowed(served, method, path, allowed):
    reply = served.client.request(method, path)
    assert (reply.status_code, reply.headers["allow"]) == (405, allowed)
    said = f"{method} {path}: the method must be {allowed.replace(', ', ' or ')}"
    assert reply.json()["error"]["message"] == said


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/v1/models"])
def test_what_can_be_read_has_a_head(served, path):
    reply = served.client.head(path)
    assert (reply.status_code, reply.content) == (200, b"")
    assert reply.headers["content-type"] == served.client.get(path).headers["content-type"]


def test_half_a_surrogate_pair_is_refused_in_openais_form(served):
    """JSON can say it, UTF-8 cannot."""
    body = '{"messages": [{"role": "user", "content": "w1"}], "x\\ud800": 1}'
    reply = served.client.post(CHAT, content=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith("x\\ud800: unknown field")


def test_what_a_client_sends_back_and_means_nothing_is_taken(served):
    answered = served.post(CHAT, messages=ask(), max_tokens=4).json()["choices"][0]["message"]
    assert answered["refusal"] is None
    more = [*ask(), answered | {"content": "w4", "tool_calls": []}, *ask()]
    assert served.post(CHAT, messages=more, max_tokens=4).status_code == 200
    options = {"include_usage": False, "include_obfuscation": False}
    assert served.post(CHAT, messages=ask(), stream=True, stream_options=options).status_code == 200


def test_more_answers_than_ever_may_wait_are_refused_for_good(text):
    with Served(text, max_queue=5) as server:
        reply = server.post(COMPLETE, prompt=["w1", "w2"], n=3, max_tokens=4)
        assert reply.status_code == 400
        assert "2 prompts with n=3 must be at most max_queue=5 answers" in reply.json()["error"]["message"]
        assert server.post(COMPLETE, prompt=["w1"], n=5, max_tokens=4).status_code == 200


def test_too_many_prompts_are_refused_before_they_are_encoded(text, monkeypatch):
    from qwen3llada.serving import bodies

    with Served(text, max_queue=5) as server:
        monkeypatch.setattr(bodies, "encoded", lambda *_: 1 / 0)
        reply = server.post(COMPLETE, prompt=["w1 w2"] * 100_000)
        assert reply.status_code == 400
        assert "100000 prompts with n=1 must be at most max_queue=5" in reply.json()["error"]["message"]


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_encoded(text, monkeypatch):
    from qwen3llada.serving import prompts, service

    monkeypatch.setattr(service.Limits, "of", lambda *_: service.Limits(5, 1000))
    with Served(text) as server:
        monkeypatch.setattr(prompts, "encode_texts", lambda *_: 1 / 0)
        for path, body in ((COMPLETE, {"prompt": ["w1", "w2 " * 334]}), (CHAT, {"messages": ask("w2 " * 334)})):
            reply = server.post(path, **body)
            assert reply.status_code == 400
            assert "of 1,002 characters must have at most 1,000" in reply.json()["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, COMPLETE])
def test_other_clients_are_served_while_a_long_prompt_is_encoded(text, monkeypatch, path):
    from qwen3llada.serving import service

    started, go_on, reader = threading.Event(), threading.Event(), service.READERS["chat"]

    def slow_reader(text, values, *rest):
        if values.get("seed") == 7:
            started.set()
            assert go_on.wait(20)
        return reader(text, {"messages": ask()}, *rest)

    for kind in service.READERS:
        monkeypatch.setitem(service.READERS, kind, slow_reader)
    with Served(text) as server:
        found = []
        client = threading.Thread(target=lambda: found.append(server.post(path, seed=7)))
        client.start()
        assert started.wait(10)
        with httpx.Client(base_url=server.url, timeout=10, trust_env=False) as other:
            assert other.get("/health").status_code == 200
            assert other.post(CHAT, json={}).status_code == 200
        assert not found
        go_on.set()
        client.join()
    assert found[0].status_code == 200


def test_a_defect_is_told_in_openais_form(text, monkeypatch):
    from qwen3llada.serving import service

    with Served(text) as server:
        monkeypatch.setitem(service.READERS, "chat", lambda *_: 1 / 0)
        reply = server.post(CHAT, messages=ask())
        assert (reply.status_code, reply.json()["error"]["message"]) == (500, "internal error: ZeroDivisionError")


def test_models_health_and_metrics(served):
    (model,) = served.client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("tiny", "model")
    assert served.client.get("/health").json()["status"] == "ok"
    served.post(CHAT, messages=ask())
    reply = served.client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = dict(line.rsplit(" ", 1) for line in reply.text.splitlines() if not line.startswith("#"))
    assert int(lines["qwen3llada_answers_total"]) >= 1
    assert lines["qwen3llada_answer_seconds_count"] == lines["qwen3llada_answers_total"]
    assert lines['qwen3llada_answer_seconds_bucket{le="+Inf"}'] == lines["qwen3llada_answers_total"]


def test_a_finished_answer_is_counted_before_its_client_has_it(text, monkeypatch):
    from qwen3llada.serving.jobs import Job

    with Served(text) as server:
        metrics, deliver, seen = server.scheduler.metrics, Job._deliver, []

        def counted_by_then(job, new, **rest):
            seen.extend([metrics._answers] * rest["finished"])
            deliver(job, new, **rest)

        monkeypatch.setattr(Job, "_deliver", counted_by_then)
        server.post(CHAT, messages=ask())
    assert seen == [1]


def test_a_key_is_asked_for_where_there_is_one(text):
    with Served(text, api_key="secret") as server:
        for key, status in ((None, 401), ("Bearer wrong", 401), ("Bearer secret", 200)):
            headers = {"Authorization": key} if key else {}
            assert server.client.get("/v1/models", headers=headers).status_code == status
        assert server.client.get("/health").status_code == 200


async def load(url, bodies, path=CHAT):
    """Answers to all bodies, sent at once."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as client:
        return await asyncio.gather(*(client.post(path, json=body) for body in bodies))


def test_200_clients_at_once_get_what_each_would_get_alone(text):
    bodies = [
        {"messages": ask(" ".join(f"w{(i + j) % 60}" for j in range(1 + i % 9))), "seed": i, "max_tokens": 4 + i % 13}
        | ({"temperature": 0.7} if i % 2 else {})
        | ({"unmask": "threshold"} if i % 3 else {"steps": 5 + i % 7})
        for i in range(200)
    ]
    with Served(text, max_batch=32) as server:
        replies = asyncio.run(load(server.url, bodies))
        counts = counters(server)
    assert {reply.status_code for reply in replies} == {200}
    for i in range(0, 200, 13):
        body = bodies[i]
        knobs = {name: body[name] for name in ("temperature", "unmask", "steps") if name in body}
        knobs = {"steps": max(body["max_tokens"], 5)} | knobs
        expected = alone(text, body["messages"][0]["content"], seed=i, gen_length=body["max_tokens"], **knobs)
        assert replies[i].json()["choices"][0]["message"]["content"] == expected, body
    assert counts["qwen3llada_groups_total"] == 0
    assert counts["qwen3llada_pass_rows_total"] > 8 * counts["qwen3llada_passes_total"]  # and not one after the other


def test_graphs_decode_the_running_batch(text, monkeypatch):
    """Plain torch stands in for the kernels. Knobs that have no graph are decoded beside it, and counted."""
    pytest.importorskip("triton")
    from qwen3llada.sampling import running_batch
    from qwen3llada.sampling.cuda import support
    from tests.sampling.cuda import plain_kernels

    plain_kernels.install(monkeypatch)
    monkeypatch.setattr(running_batch, "why_eager", lambda model, request: support.unknown_knob(request.params))
    bodies = [
        {"messages": ask(" ".join(f"w{(i + j) % 60}" for j in range(1 + i % 9))), "seed": i, "max_tokens": 4 + i % 13}
        | [{"temperature": 0.7}, {"unmask": "threshold"}, {"remask": 1}][i % 3]
        for i in range(18)
    ]
    with Served(text, max_batch=8) as server:
        replies = asyncio.run(load(server.url, bodies))
        counts = counters(server)
    for body, reply in zip(bodies, replies, strict=True):
        knobs = {name: body[name] for name in ("temperature", "unmask", "remask") if name in body}
        said = reply.json()["choices"][0]["message"]["content"]
        knobs["gen_length"] = body["max_tokens"]
        assert said == alone(text, body["messages"][0]["content"], seed=body["seed"], **knobs), body
    assert counts["qwen3llada_eager_answers_total"] == 6
    assert counts["qwen3llada_groups_total"] == 0


def test_what_cannot_share_passes_is_a_group_beside_the_running_batch(text):
    exact = {"messages": ask(), "temperature": 0.7}
    dual = {"messages": ask("w4 w5"), "block_attention": False, "cache": "dual"}
    bodies = [exact | {"seed": i} if i % 2 else dual | {"max_tokens": 8 + i} for i in range(12)]
    with Served(text) as server:
        replies = asyncio.run(load(server.url, bodies))
        counts = counters(server)
    for body, reply in zip(bodies, replies, strict=True):
        said = reply.json()["choices"][0]["message"]["content"]
        length = body.get("max_tokens", 16)
        knobs = {name: body[name] for name in ("temperature", "block_attention", "cache") if name in body}
        expected = alone(text, body["messages"][0]["content"], seed=body.get("seed", 0), gen_length=length, **knobs)
        assert said == expected, body
    assert counts["qwen3llada_group_rows_total"] == 6
    assert counts["qwen3llada_groups_total"] <= 6


def test_a_request_is_answered_while_a_long_one_runs(text, slow):
    """It enters the running batch, instead of waiting for the long one's end."""
    progress = Progress(text.tokenizer, text.model.config.mask_token_id, frozenset())
    long = Job(
        index=0,
        prompt=[1],
        params=DEFAULTS.model_copy(update={"gen_length": 250, "steps": 250, "unmask": "fixed"}),
        seed=0,
        progress=progress,
        deliver=lambda update: None,
    )
    with Served(text) as server:
        server.scheduler.submit([long])
        while not server.scheduler.decoding:
            time.sleep(0.01)
        before = long.passes
        assert server.post(CHAT, messages=ask("w7"), max_tokens=4).status_code == 200
        assert before < long.passes < 250
        end = time.monotonic() + 10
        while server.scheduler.decoding != 1 and time.monotonic() < end:  # the answered one may still be leaving
            time.sleep(0.02)
        assert server.scheduler.decoding == 1
        server.scheduler.cancel([long])
        assert idle(server)


@pytest.fixture
def slow(monkeypatch):
    """Each forward pass takes a while."""
    from qwen3llada.serving import engine

    step = engine.RunningBatch.step

    def slowly(batch):
        time.sleep(0.05)
        return step(batch)

    monkeypatch.setattr(engine.RunningBatch, "step", slowly)


def idle(server, seconds=10):
    """Wait until nothing runs or waits."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(RuntimeError):
            if not server.scheduler.waiting and not server.scheduler.decoding:
                return True
        time.sleep(0.02)
    return False


def test_a_reply_waits_for_the_text_of_every_answer(text, monkeypatch):
    """The scheduler's thread decodes the text of the second answer while the first one's last update is read."""
    from qwen3llada.serving import service

    decode, next_update = text.tokenizer.decode, service.next_update

    def slow_decode(*args, **options):
        time.sleep(0.1)
        return decode(*args, **options)

    async def late(*args):
        update = await next_update(*args)
        await asyncio.sleep(0.03)
        return update

    with Served(text) as server:
        right = server.post(CHAT, messages=ask(), seed=3, n=2, max_tokens=4, steps=2).json()
        monkeypatch.setattr(text.tokenizer, "decode", slow_decode)
        monkeypatch.setattr(service, "next_update", late)
        found = server.post(CHAT, messages=ask(), seed=3, n=2, max_tokens=4, steps=2).json()
    assert found["choices"] == right["choices"]
    assert found["usage"] == right["usage"]


STAGE = """
import signal, sys
from pathlib import Path
from qwen3llada.params import _terminate
from qwen3llada.sampling.params import SampleParams
from qwen3llada.serving.params import ServeParams
from qwen3llada.serving.server import serve

signal.signal(signal.SIGTERM, _terminate)  # as for every stage
serve(ServeParams(model=Path(sys.argv[1]), port=0), SampleParams())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_stop_ends_with_status_0(servable, number):
    command = [sys.executable, "-c", STAGE, str(servable)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert " at http://127.0.0.1:" in child.stdout.readline()
        child.send_signal(number)
        out, error = child.communicate(timeout=60)
    finally:
        child.kill()
    assert (child.returncode, out) == (0, "stopped\n"), error
    assert "stopped by" not in error


def test_a_request_to_a_server_that_stops_gets_503(text):
    with Served(text) as server:
        server.scheduler.stop()
        reply = server.post(CHAT, messages=ask())
        assert (reply.status_code, reply.json()["error"]["type"]) == (503, "server_error")
        assert reply.json()["error"]["message"] == "the server is stopping"
        assert server.client.get("/health").status_code == 503


def test_a_full_queue_says_429_and_a_free_one_answers_again(text, slow):
    with Served(text, max_batch=1, max_queue=2) as server:
        replies = asyncio.run(load(server.url, [{"messages": ask()}] * 8))
        statuses = sorted(reply.status_code for reply in replies)
        assert set(statuses) == {200, 429}
        refused = next(reply for reply in replies if reply.status_code == 429)
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert refused.headers["retry-after"] == "1"
        assert server.post(CHAT, messages=ask(), max_tokens=4).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_what_a_client_left_is_given_up(text, slow, stream):
    async def leave(url):
        async with httpx.AsyncClient(base_url=url, timeout=0.4, trust_env=False) as client:
            for _ in range(3):
                with contextlib.suppress(httpx.TimeoutException):
                    body = {"messages": ask(), "max_tokens": 200, "stream": stream}
                    async with client.stream("POST", CHAT, json=body) as reply:
                        async for _ in reply.aiter_raw():
                            break

    with Served(text, max_batch=1) as server:
        asyncio.run(leave(server.url))
        assert idle(server, seconds=5)  # the answers alone would take 30 s
        assert server.post(CHAT, messages=ask(), max_tokens=4).status_code == 200


def test_a_client_that_leaves_within_its_body_is_no_error(text):
    with Served(text) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        gone = f'qwen3llada_requests_total{{path="{CHAT}",status="499"}}'
        end = time.monotonic() + 10
        while gone not in counters(server) and time.monotonic() < end:
            time.sleep(0.02)
        assert counters(server)[gone] == 1
        assert server.post(CHAT, messages=ask(), max_tokens=4).status_code == 200


def test_a_request_that_takes_too_long_is_given_up(text, slow):
    with Served(text, timeout_seconds=0.3) as server:
        reply = server.post(CHAT, messages=ask(), max_tokens=100)
        assert (reply.status_code, reply.json()["error"]["type"]) == (504, "timeout")
        assert idle(server, seconds=5)


def test_a_server_that_stops_finishes_what_runs(text, slow):
    with Served(text) as server:
        found = []
        client = threading.Thread(target=lambda: found.append(server.post(CHAT, messages=ask())))
        client.start()
        time.sleep(0.3)
        server.server.should_exit = True
        client.join()
    assert found[0].status_code == 200
    assert not server.scheduler.running


def test_what_still_waits_or_comes_while_the_server_stops_gets_503(text, slow, capfd):
    with Served(text, max_batch=1) as server:
        found = {}

        def send(name, **body):
            with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
                found[name] = client.post(CHAT, json={"messages": ask(), "max_tokens": 16} | body)

        def start(name, **body):
            thread = threading.Thread(target=send, args=(name,), kwargs=body)
            thread.start()
            return thread

        threads = [start("runs")]
        while not server.scheduler.decoding:
            time.sleep(0.01)
        threads += [start("waits"), start("waits as a stream", stream=True)]
        while server.scheduler.waiting < 2:
            time.sleep(0.01)
        server.server.should_exit = True
        while server.scheduler.running:
            time.sleep(0.01)
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as other:
            health, late = other.get("/health"), other.post(CHAT, json={"messages": ask()})
        for thread in threads:
            thread.join()
    assert (health.status_code, health.json()["status"]) == (503, "stopping")
    for reply in (late, found["waits"]):
        assert (reply.status_code, reply.json()["error"]["message"]) == (503, "the server is stopping")
    assert '"the server is stopping"' in found["waits as a stream"].text.split("\n\n")[-2]
    assert found["runs"].status_code == 200
    assert "Traceback" not in capfd.readouterr().err


def test_answers_that_run_too_long_when_the_server_stops_get_an_error(text, slow, capfd):
    with Served(text, stop_seconds=1) as server:
        body = {"messages": ask(), "max_tokens": 200, "temperature": 5.0, "seed": 1}
        found = []

        async def both():
            found.extend(await load(server.url, [body, body | {"stream": True}]))

        client = threading.Thread(target=lambda: asyncio.run(both()))
        client.start()
        while server.scheduler.decoding < 2:
            time.sleep(0.01)
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow_client:  # its body is never complete
            slow_client.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
            time.sleep(0.2)
            server.server.should_exit = True
            client.join()
            said = slow_client.makefile("rb").read()
    whole, stream = found
    assert (whole.status_code, whole.json()["error"]["message"]) == (503, "the server is stopping")
    assert stream.status_code == 200
    assert json.loads(stream.text.split("\n\n")[-2].removeprefix("data: "))["error"]["type"] == "server_error"
    assert b"503" in said.splitlines()[0]
    assert b"the server is stopping" in said
    assert "Traceback" not in capfd.readouterr().err
    assert not server.scheduler.running


def test_a_batch_that_fails_does_not_end_the_server(text, monkeypatch):
    from qwen3llada.serving import engine

    with Served(text) as server:
        with monkeypatch.context() as patch:
            patch.setattr(engine.RunningBatch, "step", lambda *_: 1 / 0)
            reply = server.post(CHAT, messages=ask())
            assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")
            said = server.post(CHAT, messages=ask(), stream=True).text
            assert "internal error: ZeroDivisionError" in said
        assert server.post(CHAT, messages=ask()).status_code == 200


def test_many_requests_leave_nothing_behind(text):
    """Memory after 200 requests is that after 100: nothing of a request is kept."""
    import gc

    with Served(text) as server:
        peaks = []
        for _ in range(2):
            for start in range(0, 100, 50):
                asyncio.run(load(server.url, [{"messages": ask(), "seed": start, "max_tokens": 4}] * 50))
            gc.collect()
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        assert idle(server)
        assert peaks[1] - peaks[0] < 13 * 1024  # KiB


def test_the_official_client_works(served):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
    said = client.chat.completions.create(model="tiny", messages=ask(), seed=1, extra_body={"steps": 16}, logprobs=True)
    stream = client.chat.completions.create(
        model="tiny", messages=ask(), seed=1, stream=True, extra_body={"steps": 16, "canvas": True}
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == said.choices[0].message.content
    assert said.choices[0].logprobs.content[0].logprob <= 0
    assert client.models.list().data[0].id == "tiny"
    assert client.completions.create(model="tiny", prompt="w1", max_tokens=4, logprobs=1).choices[0].text
    with pytest.raises(openai.BadRequestError, match=r"top_p=0\.3 is not supported"):
        client.chat.completions.create(model="tiny", messages=ask(), top_p=0.3)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_the_page_in_a_browser(text, tmp_path, monkeypatch):
    """Questions typed and sent, answers, a stop, a reload, on a desktop and a phone, light and dark."""
    step = Engine.step
    monkeypatch.setattr(
        Engine, "step", lambda engine: (time.sleep(0.1), step(engine))
    )  # few tokens, none an end, before the stop
    with Served(text) as server:
        command = [sys.executable, str(Path(__file__).with_name("chat_page.py")), server.url, str(tmp_path)]
        command += ["--tokens", "80", "--question", "w1 w2", "--question", "w3"]
        child = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stdout + child.stderr
    assert len(list(tmp_path.glob("*.png"))) == 8


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_a_new_chat_during_an_answer_forgets_its_question():
    from qwen3llada.serving.app import PAGE

    command = ["node", str(Path(__file__).with_name("page_script.js")), str(PAGE)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) == {"kept": [], "asked": [["old"], ["new"]], "stopping": "Stop"}


def test_the_page_loads_nothing_from_elsewhere(served):
    reply = served.client.get("/")
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "//" not in reply.text.replace("// ", "")  # no address of another host
    for name in (
        "max_tokens",
        "steps",
        "block_length",
        "temperature",
        "seed",
        "remasking",
        "unmask",
        "factor",
        "edit_threshold",
    ):
        assert f'name="{name}"' in reply.text

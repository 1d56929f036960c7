"""The server, through OpenAI's own client: everybody gets what generate writes, and nobody else's text."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.request import urlopen

import httpx2
import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_backend import EOS, ScriptedBackend, ToyBackend, ToyTask

import dllm_gym.server
from dllm_gym.generation import generate
from dllm_gym.server.asked import BadField, read_chat, read_text
from dllm_gym.server.final import Answer
from dllm_gym.server.serving import is_local, make_app, running
from dllm_gym.server.team import Team
from dllm_gym.strategies import make_strategy
from dllm_gym.tasks import load_task

LENGTH = ToyTask.completion_length
PATIENCE = 20.0  # seconds for what takes none, before a test fails instead of waiting for ever


class Gated(ToyBackend):
    """Predicts only as often as it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Semaphore(0)
        self.asked = threading.Semaphore(0)

    def predict(self, *args, **kwargs):
        self.asked.release()
        assert self.gate.acquire(timeout=PATIENCE)
        return super().predict(*args, **kwargs)

    def at_work(self):
        """Waits for it to be asked."""
        assert self.asked.acquire(timeout=PATIENCE)

    def open(self):
        self.gate.release(10_000)


@contextmanager
def served(agent="confidence:k=2", backend=None, **options):
    """The address of a server of a toy, and its dLLM."""
    backend = ToyBackend() if backend is None else backend
    app = make_app(agent, backend, **{"completion_length": LENGTH, "model": "toy", **options})
    with running(app, grace=5) as address:
        try:
            yield address, backend
        finally:
            getattr(backend, "open", lambda: None)()


@cache
def client(address, api_key="nobody asks"):
    """One for all threads: it opens a connection for each of them."""
    return openai.OpenAI(base_url=f"{address}/v1", api_key=api_key, max_retries=0, timeout=PATIENCE)


def ask(to, prompt, **options):
    return to.completions.create(model="toy", prompt=prompt, **options)


def text_of(to, prompt, stream=False, **options):
    """A text, whole or in pieces put together."""
    if not stream:
        return ask(to, prompt, **options).choices[0].text
    return "".join(chunk.choices[0].text for chunk in ask(to, prompt, stream=True, **options))


def expected(prompt, agent="confidence:k=2", **options):
    return generate(prompt, agent, **{"backend": ToyBackend(), "completion_length": LENGTH, **options})


def metric(address, name):
    text = urlopen(f"{address}/metrics").read().decode()
    found = re.search(rf"^dllm_gym_{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def wait_for(condition):
    for _ in range(int(PATIENCE * 100)):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen")


# Texts ----------------------------------------------------------------------------------------------------


def test_64_clients_at_once_get_the_texts_of_generate():
    """Each has a prompt, options and a seed of its own; half of them stream."""
    backend = Gated()
    thresholds = [0.1, 0.5, 0.9, None]
    with served("fast-dllm:threshold=0.7", backend, batch_size=24) as (address, _):

        def one(number):
            threshold = thresholds[number % 4]
            extra = {} if threshold is None else {"extra_body": {"agent": {"threshold": threshold}}}
            return text_of(client(address), str(7919 * number), stream=number % 2 == 0, seed=number, **extra)

        with ThreadPoolExecutor(64) as pool:
            answers = [pool.submit(one, number) for number in range(64)]
            wait_for(lambda: metric(address, "running") + metric(address, "waiting") == 64)
            backend.open()
            texts = [answer.result() for answer in answers]
    for number, text in enumerate(texts):
        rule = f"fast-dllm:threshold={thresholds[number % 4] or 0.7}"
        assert text == expected(str(7919 * number), rule).text
    assert max(backend.rows_per_call) == 24


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_drawn_is_drawn_by_the_seed(stream):
    with served("random:k=2", temperature=0.8) as (address, _):
        to = client(address)
        seeds = [0, 1, 2, 2**63 - 1]
        found = [text_of(to, "314", stream, seed=seed) for seed in seeds]
        common = {"agent": "random:k=2", "temperature": 0.8}
        assert found == [expected("314", seed=seed, **common).text for seed in seeds]
        unseeded = ask(to, "314")
        seed = unseeded.choices[0].dllm["seed"]
        assert unseeded.choices[0].text == expected("314", seed=seed, **common).text
        assert seed != ask(to, "314").choices[0].dllm["seed"]
        assert ask(to, "314", seed=-1).choices[0].text == ask(to, "314", seed=-1).choices[0].text


def test_several_prompts_and_choices_are_one_list_of_prompts():
    with served("random:k=2", temperature=0.8) as (address, _):
        answer = ask(client(address), ["12", "345"], n=2, seed=5)
        found = [choice.text for choice in answer.choices]
        wanted = expected(["12", "12", "345", "345"], "random:k=2", temperature=0.8, seed=5)
        assert found == [one.text for one in wanted]
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.usage.prompt_tokens == 5
        assert answer.usage.completion_tokens == sum(len(one.tokens) for one in wanted)
        pieces = ["", "", "", ""]
        for chunk in ask(client(address), ["12", "345"], n=2, seed=5, stream=True):
            pieces[chunk.choices[0].index] += chunk.choices[0].text
        assert pieces == found


def test_a_policy_writes_what_it_writes_elsewhere():
    """On a real dLLM, with options of its own in every request."""
    agent = "policy:arithmetic-any:target_steps=8,deterministic"
    task = load_task("arithmetic", split="test")
    prompts = [task.problem(index).prompt for index in range(4)]
    steps = [4, 6, 8, 12]
    with running(make_app(agent, batch_size=3)) as address:
        to = client(address)

        def one(number):
            return to.chat.completions.create(
                model="tiny-arithmetic",
                messages=[{"role": "user", "content": [{"type": "text", "text": prompts[number]}]}],
                extra_body={"agent": {"target_steps": steps[number]}},
            )

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(one, range(4)))
        with pytest.raises(openai.BadRequestError, match="trained to be told"):
            to.completions.create(
                model="tiny-arithmetic", prompt=prompts[0], extra_body={"agent": {"target_steps": 1e5}}
            )
    for answer, prompt, told in zip(answers, prompts, steps, strict=True):
        wanted = generate(prompt, f"policy:arithmetic-any:target_steps={told},deterministic")
        assert answer.choices[0].message.content == wanted.text
        assert answer.choices[0].dllm["steps"] == wanted.steps
        assert answer.usage.completion_tokens == len(wanted.tokens)


def test_limits_and_stops_cut_the_text_of_generate():
    backend = ScriptedBackend([3, 7, 1, 7, 2, EOS])
    with served("left-to-right", backend) as (address, _):
        to = client(address)
        for stream in (False, True):
            assert text_of(to, "1", stream) == "37172"
            assert text_of(to, "1", stream, max_tokens=3) == "371"
            assert text_of(to, "1", stream, max_tokens=900) == "37172"
            assert text_of(to, "1", stream, stop="72") == "371"
            assert text_of(to, "1", stream, stop=["17", "71"]) == "3"
        answer = ask(to, "1", max_tokens=3)
        assert (answer.choices[0].finish_reason, answer.choices[0].dllm["steps"]) == ("length", 3)
        answer = ask(to, "1", stop="17")
        assert (answer.choices[0].finish_reason, answer.choices[0].dllm["steps"]) == ("stop", 4)
        assert ask(to, "1").choices[0].finish_reason == "stop"


def test_a_stream_shows_the_canvas():
    backend = ScriptedBackend([3, 7, 1, 5, EOS, 2], [0.1, 0.2, 0.9, 0.8, 0.3, 0.1])
    with served("confidence:k=2", backend) as (address, _):
        chunks = list(ask(client(address), "1", stream=True, extra_body={"canvas": True}, seed=3,
                          stream_options={"include_usage": True}))  # fmt: skip
        assert chunks[-1].usage.completion_tokens == 4
        shown = [chunk.choices[0].dllm for chunk in chunks[1:-1]]
    assert [one["canvas"] for one in shown] == [
        [None, None, "1", "5", None, None],
        [None, "7", "1", "5", "", None],
        ["3", "7", "1", "5", "", "2"],
    ]
    assert [one["steps"] for one in shown] == [1, 2, 3]
    assert [chunk.choices[0].text for chunk in chunks[:-1]] == ["", "", "", "3715"]
    assert {one["seed"] for one in shown} == {3}


class Fickle:
    """Takes back a third of what stands, in every step another one."""

    def __init__(self, actions):
        self.plays = {"actions": actions, "finish": "confirm"}

    def act(self, observation):
        length = observation["mask"].shape[1]
        step = np.rint(observation["progress"] * length).astype(int)
        keeps = (np.arange(length) + step) % 3 > 0
        return np.where(observation["mask"] == 1, observation["confidence"] > 0.5, keeps)


@pytest.mark.parametrize("actions", ["set-state", "edit"])
def test_what_an_agent_takes_back_was_not_told(actions):
    back = 0
    with served(Fickle(actions), block_length=3) as (address, _):
        for number in range(8):
            chunks = list(ask(client(address), str(number), stream=True, extra_body={"canvas": True}))
            told = "".join(chunk.choices[0].text for chunk in chunks)
            wanted = expected(str(number), Fickle(actions), block_length=3)
            assert told == wanted.text
            shown = [chunk.choices[0].dllm for chunk in chunks[1:]]
            assert [one["steps"] for one in shown] == list(range(1, wanted.steps + 1))
            before = [None] * LENGTH
            for one in shown:
                steps = zip(before, one["canvas"], strict=True)
                gone = [new for old, new in steps if old is not None and new != old]
                assert [new is None for new in gone] == [actions == "set-state"] * len(gone)
                back += len(gone)
                before = one["canvas"]
    assert back > 0


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
    st.integers(1, 9),
    st.lists(st.text("abé", min_size=1, max_size=3), max_size=3),
)
def test_what_was_told_is_never_taken_back(tokens, chance, limit, stops):
    """Tokens are bytes, so that some characters take two of them; they are revealed in any order."""
    spelt = [b"a", b"b", b"\xc3", b"\xa9", b"ab", b""]

    def decode(ids):
        return b"".join(spelt[i] for i in ids).decode(errors="replace")

    answer = Answer(decode, {5}, limit, stops)
    masked, told = np.ones(len(tokens), dtype=bool), ""
    places = list(range(len(tokens)))
    chance.shuffle(places)
    for done, place in enumerate(places, start=1):
        masked[place] = False
        told += answer.grow(np.array(tokens), masked, done == len(tokens))
        if answer.reason is not None:
            break
    whole = decode((tokens[: tokens.index(5)] if 5 in tokens else tokens)[:limit])
    cut = min((at for stop in stops if (at := whole.find(stop)) >= 0), default=None)
    assert told == answer.text == whole[:cut]
    ends = cut is not None or 5 in tokens[:limit]
    assert answer.reason == ("stop" if ends else "length")


# Continuous batching --------------------------------------------------------------------------------------


def test_a_request_joins_at_the_next_forward_and_rows_are_refilled():
    backend = Gated()
    with served("left-to-right", backend, batch_size=2) as (address, _), ThreadPoolExecutor(3) as pool:
        first = pool.submit(text_of, client(address), "1", max_tokens=4)
        backend.at_work()
        second = pool.submit(text_of, client(address), "22", max_tokens=1)
        third = pool.submit(text_of, client(address), "333", max_tokens=2)
        wait_for(lambda: metric(address, "waiting") == 2)
        backend.open()
        assert [len(one.result()) for one in (first, second, third)] == [4, 1, 2]
        assert metric(address, "forwards_total") == len(backend.calls)
        assert metric(address, "steps_total") == sum(backend.rows_per_call) == 7
    assert backend.rows_per_call[0] == 1
    assert max(backend.rows_per_call) == 2


def test_cut_connections_free_their_rows_and_disturb_nobody():
    backend = Gated()
    body = {"model": "toy", "prompt": "99"}
    with served("left-to-right", backend, batch_size=4) as (address, _), ThreadPoolExecutor(4) as pool:
        place = address.removeprefix("http://").split(":")
        streams = []
        for stream in (True, False, True, False):  # of which the server hears nothing but that they are gone
            content = json.dumps({**body, "stream": stream}).encode()
            connection = socket.create_connection((place[0], int(place[1])))
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(content), content)
            )
            streams.append(connection)
        wait_for(lambda: metric(address, "waiting") + metric(address, "running") == 4)
        others = [pool.submit(text_of, client(address), str(number)) for number in (4, 5, 6, 7)]
        for connection in streams:
            connection.close()
        cancelled = 'completions_total{outcome="cancelled"}'
        wait_for(lambda: backend.gate.release() or metric(address, cancelled) == 4)
        backend.open()
        assert [one.result() for one in others] == [
            expected(str(number), "left-to-right").text for number in (4, 5, 6, 7)
        ]
        wait_for(lambda: metric(address, "running") == 0)


def test_an_agent_that_raises_breaks_its_own_requests():
    def fragile(observation):
        if len(calls) > 2:
            raise ArithmeticError("it broke")
        return observation["action_mask"]

    calls = []
    team = Team(3)
    rule = make_strategy("confidence", k=1)
    team.give(np.arange(3), [fragile_agent := dllm_gym.evaluation.as_agent(fragile), rule, fragile_agent])
    observation = {
        "action_mask": np.ones((3, 4), dtype=np.int8),
        "confidence": np.tile(np.float32([0.1, 0.4, 0.2, 0.3]), (3, 1)),
    }
    assert team.act(observation).sum(axis=1).tolist() == [4, 1, 4]
    calls += [1, 2, 3]
    assert team.act(observation).sum(axis=1).tolist() == [0, 1, 0]
    assert {row: str(error) for row, error in team.broken.items()} == {0: "it broke", 2: "it broke"}
    team.give(np.array([0, 2]), [None, rule])
    assert team.act(observation).sum(axis=1).tolist() == [0, 1, 1]
    assert not team.broken


def test_options_that_fail_later_fail_alone():
    with served("confidence:k=1") as (address, _):
        to = client(address)
        late = {"extra_body": {"agent": {"k": None, "steps_per_block": 9}}}
        with pytest.raises(openai.BadRequestError, match="exceeds the 6 positions"):
            ask(to, "1", **late)
        with pytest.raises(openai.APIError, match="exceeds the 6 positions"):
            text_of(to, "1", stream=True, **late)
        assert text_of(to, "12") == expected("12", "confidence:k=1").text


# What can go wrong ----------------------------------------------------------------------------------------


def test_a_dllm_that_fails_is_told_and_others_may_come():
    class Broken(ToyBackend):
        failing = True

        def predict(self, *args, **kwargs):
            if self.failing:
                raise RuntimeError("CUDA out of memory")
            return super().predict(*args, **kwargs)

    with served(backend=Broken()) as (address, backend):
        to = client(address)
        with pytest.raises(openai.InternalServerError, match="out of memory"):
            ask(to, "1")
        with pytest.raises(openai.APIError, match="out of memory"):
            text_of(to, "1", stream=True)
        backend.failing = False
        assert text_of(to, "1") == expected("1").text


class Short(ToyBackend):
    max_length = 20


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_that_are_too_long_are_refused(stream):
    with served(backend=Short(), most_prompt_tokens=12) as (address, _):
        to = client(address)
        with pytest.raises(openai.BadRequestError, match=r"takes 15 tokens, which .* than this dLLM's 20"):
            ask(to, "1" * 15, stream=stream)
        with pytest.raises(openai.BadRequestError, match="takes 14 tokens, accepted are 12"):
            ask(to, ["1", "1" * 14], stream=stream)
        with pytest.raises(openai.BadRequestError, match="invalid literal"):
            ask(to, "no digits", stream=stream)
        with pytest.raises(openai.APIStatusError) as caught:
            ask(to, "1" * (1 << 22), stream=stream)
        assert caught.value.status_code == 413
        assert text_of(to, "1" * 12, stream) == expected("1" * 12).text


def test_whoever_finds_the_queue_full_is_told_so():
    options = {"batch_size": 1, "most_waiting": 2}
    with served(backend=Gated(), **options) as (address, backend), ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(text_of, client(address), "1") for _ in range(3)]
        wait_for(lambda: metric(address, "waiting") == 2)
        with pytest.raises(openai.RateLimitError, match="completions are being written or wait"):
            ask(client(address), ["1", "2", "3"])
        backend.open()
        assert {one.result() for one in accepted} == {expected("1").text}


def test_what_takes_too_long_is_given_up():
    options = {"batch_size": 1, "seconds": 0.05}
    with served(backend=Gated(), **options) as (address, backend), ThreadPoolExecutor(3) as pool:
        written = pool.submit(ask, client(address), "1")
        backend.at_work()
        waiting = pool.submit(ask, client(address), "1")
        streamed = pool.submit(text_of, client(address), "1", True)
        threading.Event().wait(0.2)
        backend.gate.release(3)
        for one in (written, waiting):
            with pytest.raises(openai.InternalServerError, match="not done after") as caught:
                one.result()
            assert caught.value.status_code == 504
        with pytest.raises(openai.APIError, match=r"not done after 0\.05 seconds"):
            streamed.result()


def test_a_server_that_ends_finishes_what_it_took_and_takes_no_more():
    backend = Gated()
    with ThreadPoolExecutor(2) as pool:
        with served("left-to-right", backend, batch_size=1) as (address, _):
            taken = [pool.submit(text_of, client(address), "12", stream) for stream in (False, True)]
            backend.at_work()
            wait_for(lambda: backend.gate.release() or metric(address, "prompt_tokens_total") == 4)
        assert [one.result() for one in taken] == [expected("12", "left-to-right").text] * 2
        with pytest.raises(openai.APIConnectionError):
            ask(client(address), "1")


def test_only_who_knows_the_key_is_answered():
    with served(api_key="sesame") as (address, _):
        assert text_of(client(address, api_key="sesame"), "1") == expected("1").text
        for wrong in ("open", "sesam", "sesame2"):
            with pytest.raises(openai.AuthenticationError, match="wants its API key"):
                client(address, api_key=wrong).models.list()
        foreign = {"Authorization": "Bearer s\u00e9same".encode()}
        assert httpx2.get(f"{address}/v1/models", headers=foreign).status_code == 401
        assert httpx2.post(f"{address}/v1/completions", json={}).status_code == 401
        assert httpx2.get(f"{address}/v1/models", headers={"Authorization": "sesame"}).status_code == 401
        assert httpx2.get(f"{address}/health").json() == {"status": "ok"}
    for bad in ("", " sesame", "s\u00e9same"):
        with pytest.raises(ValueError, match="API key"):
            make_app(backend=ToyBackend(), api_key=bad)


def test_what_is_no_request_is_refused_in_openais_format():
    nested = b"[" * 100_000
    bodies = [b"", b"{", b"[]", b"1", nested, b'{"model": "toy"}', b'{"model": "toy", "model": "toy"}',
              b'{"model": "toy", "prompt": "\\ud800"}', b'{"model": "toy", "prompt": "1", "n": 1e400}',
              b'{"model": "toy", "prompt": "\xff"}', b'{"model": "toy", "prompt": [1, "2"]}',
              b'{"model": "\\ud800"}', b'{"model": "toy", "prompt": ""}X']  # fmt: skip
    with served() as (address, _):
        for body in bodies:
            answer = httpx2.post(
                f"{address}/v1/completions", content=body, headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == 400, body[:80]
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
            assert len(answer.content) < 1000
        plain = httpx2.post(
            f"{address}/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"}
        )
        assert plain.status_code == 415
        assert httpx2.get(f"{address}/v1/completions").json()["error"]["message"].startswith("Method Not All")
        assert httpx2.get(f"{address}/v1/nothing").json()["error"]["type"] == "invalid_request_error"
        with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'; this server has 'toy'"):
            client(address).completions.create(model="gpt-4", prompt="1")
        assert text_of(client(address), "1") == expected("1").text


def test_token_ids_are_prompts():
    with served() as (address, _):
        answer = ask(client(address), [[3, 1, 4], [1, 5]])
        assert [choice.text for choice in answer.choices] == [expected(p).text for p in ("314", "15")]
        assert text_of(client(address), [3, 1, 4]) == expected("314").text
        with pytest.raises(openai.BadRequestError, match="tokens 0 to 12"):
            ask(client(address), [3, 99])


@pytest.mark.parametrize(
    ("fields", "named", "message"),
    [
        ({"max_tokens": 0}, "max_tokens", "whole number of at least 1"),
        ({"n": 1000}, "n", "below 129"),
        ({"n": True}, "n", "whole number"),
        ({"stop": ""}, "stop", "none of them empty"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"temperature": float("nan")}, "temperature", "number from 0 to 2"),
        ({"logprobs": True}, "logprobs", "logprobs is not supported: leave it out, or False"),
        ({"top_p": 0.5}, "top_p", "or 1; got 0.5"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"agent": {"k": 1e9}}, "agent", "numbers up to a million"),
        ({"agent": ["k"]}, "agent", "an object of options"),
        ({"max_tokns": 3}, "max_tokns", "unknown field 'max_tokns' (did you mean 'max_tokens'?)"),
        ({"prompt": ["1"] * 200}, "prompt", "1 to 128 answers"),
        ({"prompt": []}, "prompt", "1 to 128 answers"),
        ({"prompt": None}, "prompt", "lacks prompt"),
        ({"stream": "yes"}, "stream", "true or false"),
    ],
)
def test_fields_are_refused_by_name(fields, named, message):
    with pytest.raises(BadField, match=re.escape(message)) as caught:
        read_text({"model": "toy", "prompt": "1", **fields})
    assert caught.value.name == named


def test_what_clients_send_without_meaning_it_is_accepted():
    asked = read_chat(
        {
            "model": "toy",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "1"}], "name": None}],
            "top_p": 1.0,
            "frequency_penalty": 0.0,
            "logprobs": None,
            "user": "me",
            "max_completion_tokens": 3,
            "response_format": {"type": "text"},
        }
    )
    assert asked.prompts == [[{"role": "user", "content": "1"}]]
    assert asked.limit == 3
    with pytest.raises(BadField, match="only parts of type text"):
        read_chat({"model": "toy", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]})


def test_options_of_the_agent_are_checked_before_anything_waits():
    with served("fast-dllm:threshold=0.9") as (address, _):
        to = client(address)
        for options, message in (
            ({"limit": 0.5}, "it accepts threshold"),
            ({"threshold": 7}, r"must be a finite number in \[0, 1\]"),
            ({"threshold": True}, r"must be a finite number in \[0, 1\]"),
        ):
            with pytest.raises(openai.BadRequestError, match=message) as caught:
                ask(to, "1", extra_body={"agent": options})
            assert caught.value.param == "agent"
        with pytest.raises(openai.BadRequestError, match="writes at temperature 0, got"):
            ask(to, "1", temperature=0.7)
    with served(lambda observation: observation["action_mask"]) as (address, _):
        assert ask(client(address), "1").choices[0].dllm["steps"] == 1
        with pytest.raises(openai.BadRequestError, match="takes no options"):
            ask(client(address), "1", extra_body={"agent": {"k": 1}})


SLOW_DLLM = """
import time
import dllm_gym
from toy_backend import ToyBackend

class Slow(ToyBackend):
    def predict(self, *args, **kwargs):
        time.sleep(0.3)
        return super().predict(*args, **kwargs)

dllm_gym.register_backend("slow", Slow)
"""


@contextmanager
def process(folder, *options):
    """A server in a process of its own, and its address."""
    places = [str(Path(__file__).parent), *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "DLLM_GYM_API_KEY": "sesame"}
    command = [sys.executable, "-m", "dllm_gym", "serve", "--port", "0", *options]
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running, re.search(r"http://127\.0\.0\.1:\d+", running.stderr.readline())[0]
        finally:
            running.kill()


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_told_to_end_finishes_and_one_that_is_killed_deceives_nobody(end, tmp_path):
    (tmp_path / "slow_dllm.py").write_text(SLOW_DLLM, encoding="utf-8")
    options = ["--import", "slow_dllm.py", "--backend", "slow", "--agent", "left-to-right"]
    options += ["--completion-length", str(LENGTH), "--model", "toy"]
    with process(tmp_path, *options) as (running, address), ThreadPoolExecutor(8) as pool:
        to = client(address, "sesame")
        texts = [pool.submit(text_of, to, str(number), number % 2 == 0) for number in range(8)]
        wait_for(lambda: metric(address, "running") == 8)
        running.send_signal(end)
        if end == signal.SIGTERM:
            written = [expected(str(number), "left-to-right").text for number in range(8)]
            assert [text.result() for text in texts] == written
        else:
            for text in texts:
                with pytest.raises((openai.APIConnectionError, httpx2.RemoteProtocolError)):
                    text.result()
        assert running.wait(PATIENCE) == -end
        with pytest.raises(openai.APIConnectionError):
            to.models.list()


# Around it ------------------------------------------------------------------------------------------------


def test_models_page_and_metrics():
    with served() as (address, _):
        (model,) = client(address).models.list()
        assert model.id == "toy"
        assert (model.dllm["completion_length"], model.dllm["agent"]) == (6, "confidence(k=2)")
        assert model.dllm["end_tokens"] == [""]  # the toy's is without text
        assert client(address).models.retrieve("toy") == model
        page = httpx2.get(address)
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert httpx2.get(f"{address}/docs").status_code == 404
        ask(client(address), "12", max_tokens=1)
        assert metric(address, 'completions_total{outcome="length"}') == 1
        assert metric(address, "prompt_tokens_total") == 2
        assert metric(address, "completion_tokens_total") == 1
        assert metric(address, "seconds_count") == metric(address, "waiting_seconds_count") == 1


def test_the_page_loads_nothing_from_elsewhere():
    page = (Path(dllm_gym.server.__file__).parent / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|src=|@import|url\(|<link", page)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("example.org", False)],
)
def test_which_addresses_are_local(host, local):
    assert is_local(host) == local


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agent": "oracle"}, "cannot serve"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"most_waiting": -1}, "most_waiting must be at least 0"),
        ({"seconds": float("nan")}, "seconds above 0"),
    ],
)
def test_what_cannot_be_served_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_app(**{"backend": ToyBackend(), **options})


def test_a_taken_port_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1, port {port}"):
            dllm_gym.server.serve(make_app(backend=ToyBackend()), port=port)

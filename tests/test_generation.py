"""Text for a prompt: the same as evaluation writes, whoever asks and however many ask at once."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_backend import EOS, ScriptedBackend, ToyBackend, ToyTask

import dllm_gym
from dllm_gym.generation import MASK_SIGN, Generation, generate
from dllm_gym.prompts import read_prompts
from dllm_gym.strategies import make_strategy
from dllm_gym.tasks import load_task

AGENTS = ("fast-dllm:threshold=0.7", "confidence:k=2", "random:k=2", "left-to-right", "margin")
SAM = "Sam has 20 coins, finds 4, loses 9. Total?"


def toy_prompts(count):
    task = ToyTask("test")
    return [task.problem(index).prompt for index in range(count)]


def toy(prompts, agent="confidence:k=2", **options):
    options = {"backend": ToyBackend(), "completion_length": ToyTask.completion_length, **options}
    return generate(prompts, agent, **options)


# What is written ------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    agent=st.sampled_from(AGENTS),
    temperature=st.sampled_from([0.0, 0.8]),
    seed=st.integers(0, 2**32),
    block_length=st.sampled_from([None, 2, 3]),
    batch_size=st.integers(1, 12),
    stop=st.booleans(),
)
def test_it_writes_what_evaluate_does(agent, temperature, seed, block_length, batch_size, stop):
    common = {"temperature": temperature, "seed": seed, "block_length": block_length, "stop_at_eos": stop}
    found = toy(toy_prompts(10), agent, batch_size=batch_size, **common)
    expected = dllm_gym.evaluate(agent, 10, "test", task=ToyTask("test"), backend=ToyBackend(), **common)
    assert [one.text for one in found] == expected.records.completion
    assert [one.steps for one in found] == expected.records.nfe.tolist()


@pytest.mark.parametrize("agent", ["fast-dllm:threshold=0.9", "random:k=4", "policy:arithmetic-full"])
def test_it_writes_what_evaluate_does_on_a_real_dllm(agent):
    task = load_task("arithmetic", split="test")
    found = generate([task.problem(index).prompt for index in range(4)], agent, stop_at_eos=False)
    assert [one.text for one in found] == dllm_gym.evaluate(agent, 4).records.completion
    stopped = generate([task.problem(index).prompt for index in range(4)], agent, batch_size=2)
    assert [one.text for one in stopped] == [one.text for one in found]


def test_temperature_draws_and_the_seed_decides():
    first, again, other = (toy(["12"] * 6, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len({one.text for one in first}) > 1  # equal prompts get noise of their own


def test_every_forward_is_spent_on_a_row_that_needs_it():
    backend = ToyBackend()
    generations = toy(toy_prompts(11), "fast-dllm:threshold=0.8", backend=backend, batch_size=4)
    assert sum(backend.rows_per_call) == sum(one.steps for one in generations)
    assert max(backend.rows_per_call) == 4


def test_token_ids_are_a_prompt_that_nothing_is_put_around(tmp_path):
    texts = [SAM, "Mia has 7 pens, doubles them, buys 3. Total?"]
    backend = dllm_gym.load_backend("tiny-arithmetic")
    ids = [backend.encode_prompt(text) for text in texts]
    found = generate(ids, output=tmp_path / "texts.jsonl")
    assert [one.text for one in found] == [one.text for one in generate(texts)]
    assert [one.prompt for one in found] == ids
    assert generate(ids, output=tmp_path / "texts.jsonl") == found
    assert generate(ids[0]) == found[0]
    with pytest.raises(ValueError, match=r"has the token ids \[500\], the dLLM has tokens 0 to 59"):
        generate([[1, 500]])


def test_tokens_are_those_before_the_end():
    backend = ScriptedBackend([3, 7, EOS, 5, EOS, 1])
    (one,) = toy(["1"], "left-to-right", backend=backend)
    assert one == Generation("1", "37", (3, 7), 3)
    assert one.tokens_per_step == pytest.approx(2 / 3)
    assert one.to_json() == {
        "prompt": "1", "text": "37", "tokens": [3, 7], "steps": 3, "tokens_per_step": one.tokens_per_step,
    }  # fmt: skip
    json.dumps(one.to_json())
    (whole,) = toy(["1"], "left-to-right", backend=backend, stop_at_eos=False)
    assert (whole.text, whole.tokens, whole.steps) == ("37", (3, 7), 6)


def test_a_text_without_end_token_is_whole():
    (one,) = toy(["1"], backend=ScriptedBackend([3, 7, 1, 5, 2, 1]))
    assert (one.text, one.tokens) == ("371521", (3, 7, 1, 5, 2, 1))


@pytest.mark.parametrize(
    "options",
    [{"revealed_confidence": "model"}, {"view": "block", "block_length": 2}, {"top_k": 3}],
    ids=["revealed", "view", "top_k"],
)
def test_an_agent_sees_what_it_sees_in_evaluation(options):
    """Released policies want the dLLM's own confidence at revealed positions, others a view or more."""

    def watching(seen):
        class Watching:
            requires = ("top_k",)

            def act(self, observation):
                seen.append({name: observation[name].copy() for name in ("confidence", "mask", "top_k")})
                return make_strategy("confidence", k=2).act(observation)

        return Watching()

    seen, plain, expected = [], [], []
    found = toy(toy_prompts(3), watching(seen), **options)
    toy(toy_prompts(3), watching(plain), block_length=options.get("block_length"))
    common = {"task": ToyTask("test"), "backend": ToyBackend(), "stop_at_eos": True, **options}
    result = dllm_gym.evaluate(watching(expected), 3, "test", **common)
    assert [one.text for one in found] == result.records.completion
    assert len(seen) == len(expected) > 1
    for one, other in zip(seen, expected, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert any(
        not np.array_equal(one[name], other[name])
        for one, other in zip(seen, plain, strict=True)
        for name in one
    )


def test_texts_written_with_another_view_are_not_mixed(tmp_path, toys):
    options = {"backend": "toy", "output": tmp_path / "texts.jsonl"}
    toy(["1"], **options)
    with pytest.raises(ValueError, match="line 1 was written with other settings"):
        toy(["1"], revealed_confidence="model", **options)


# What may be asked ----------------------------------------------------------------------------------------


def test_one_prompt_gives_one_text():
    assert toy("12") == toy(["12"])[0]
    chat = [{"role": "user", "content": SAM}]
    one = generate(chat)
    assert one.prompt == chat
    assert one.text == generate(SAM).text
    assert generate([chat, SAM]) == [one, generate(SAM)]


def test_any_iterable_in_its_own_order():
    prompts = ["31", "4", "159", "4", "26"]
    found = toy((prompt for prompt in prompts), batch_size=2)
    assert [one.prompt for one in found] == prompts
    assert found == toy(tuple(prompts))
    assert found[1] == found[3]
    assert toy([]) == toy(iter([])) == []


def test_a_path_is_a_backend(tmp_path):
    path = dllm_gym.backends.ASSETS / "tiny-sudoku"
    prompt = load_task("sudoku").problem(0).prompt
    assert generate(prompt, backend=path) == generate(prompt, backend="tiny-sudoku")


def test_any_agent_will_do():
    def everything(observation):
        return observation["action_mask"]

    assert {one.steps for one in toy(toy_prompts(4), everything)} == {1}

    class Entropic:
        requires = ("entropy",)

        def act(self, observation):
            return observation["entropy"] < 1.0

    assert all(one.steps <= ToyTask.completion_length for one in toy(toy_prompts(4), Entropic()))


# Completion length ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "task", "length"),
    [
        ("tiny-arithmetic", "arithmetic", 48),
        ("tiny-arithmetic-dream", "arithmetic", 80),  # trained on a mixture: the longest
        ("tiny-sudoku", "sudoku", 16),
    ],
)
def test_a_dllm_writes_as_much_as_it_was_trained_to(backend, task, length):
    prompt = load_task(task).problem(0).prompt
    lengths = set()

    def everything(observation):
        lengths.add(observation["mask"].shape[1])
        return observation["mask"]

    generate(prompt, everything, backend)
    generate(prompt, everything, dllm_gym.backends.ASSETS / backend)
    assert lengths == {length}


def test_an_unknown_dllm_gets_256_positions():
    shapes = []

    def everything(observation):
        shapes.append(observation["mask"].shape)
        return observation["mask"]

    generate("1", everything, ToyBackend())
    toy("1", everything, completion_length=9)
    assert shapes == [(1, 256), (1, 9)]


# Callbacks ------------------------------------------------------------------------------------------------


def test_on_step_shows_the_text_being_written():
    seen = []
    toy(
        ["1", "2"],
        "left-to-right:k=2",
        backend=ScriptedBackend([3, 7, 1, 5, EOS, 1]),
        on_step=lambda *report: seen.append(report),
    )
    drafts = ["37" + 4 * MASK_SIGN, "3715" + 2 * MASK_SIGN, "3715"]
    for index in (0, 1):
        assert [report for report in seen if report[0] == index] == [
            (index, draft, step) for step, draft in enumerate(drafts, start=1)
        ]


def test_the_real_mask_is_shown_as_the_sign():
    drafts = []
    one = generate(SAM, "confidence:k=24", on_step=lambda index, text, step: drafts.append(text))
    assert MASK_SIGN in drafts[0]
    assert "mask" not in "".join(drafts)
    assert drafts[-1] == one.text


def test_on_text_gets_every_text_when_it_is_ready():
    reported = {}
    found = toy(toy_prompts(7), "fast-dllm:threshold=0.6", batch_size=3, on_text=reported.__setitem__)
    assert [reported[index] for index in range(7)] == found
    assert list(reported) != sorted(reported)  # as they finish


# What is refused ------------------------------------------------------------------------------------------


def test_an_unknown_agent_is_refused_before_anything_is_loaded(monkeypatch):
    loaded = []
    monkeypatch.setitem(dllm_gym.backends._factories, "heavy", lambda: loaded.append(1))
    with pytest.raises(ValueError, match="'nonsense' is neither a strategy nor the path"):
        generate("1", "nonsense", "heavy")
    assert not loaded


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (5, "prompts must be a text, a list of chat messages or of token ids, or an iterable of such, got 5"),
        ({"role": "user", "content": "1"}, "prompts must be a text, a list of chat messages"),
        (
            ["1", 5],
            "prompt 2 must be a text, a list of chat messages such as .*, or a list of token ids, got 5",
        ),
        ([[]], "prompt 1 must be a text, a list of chat messages"),
        ([{"role": "user"}], "prompt 1 must be a text, a list of chat messages"),
        ([1, True], "prompt 1 must be a text, a list of chat messages"),
        (b"12", "prompt 1 must be a text, a list of chat messages such as .*, got 49"),
    ],
)
def test_what_is_no_prompt_is_refused(prompts, message):
    with pytest.raises(ValueError, match=message):
        toy(prompts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"completion_length": 0}, "completion_length must be a whole number of at least 1, got 0"),
        ({"block_length": 7}, "block_length 7 exceeds completion_length 6"),
        ({"temperature": -1.0}, "temperature must be a finite number of at least 0, got -1.0"),
        ({"revealed_confidence": "two"}, "unknown revealed_confidence 'two'; choose one of one, model"),
        ({"view": "all"}, "unknown view 'all'; choose one of completion, block"),
        ({"backend": "nonsense"}, "unknown backend 'nonsense'"),
    ],
)
def test_what_is_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        toy(["1"], **options)


def test_a_prompt_without_room_is_refused_before_anything_is_written():
    class Small(ToyBackend):
        max_length = 10

    backend = Small()
    assert len(toy(["1", "1234"], backend=backend)) == 2
    backend.calls.clear()
    with pytest.raises(
        ValueError,
        match="prompt 2 takes 5 tokens, which with completion_length 6 is more than this dLLM's 10",
    ):
        toy(["1", "12345"], backend=backend, batch_size=1)
    assert not backend.calls


def test_an_unreadable_prompt_is_refused_before_anything_is_written():
    written = []
    with pytest.raises(ValueError, match="has words this dLLM does not know: hello"):
        generate([SAM, "hello"], batch_size=1, on_step=lambda *report: written.append(report))
    assert not written


# Files ----------------------------------------------------------------------------------------------------


def test_prompts_from_a_text_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff one\r\n\r\ntwo\x85words\n".encode())
    assert read_prompts(path) == ["one", "two\x85words"]


def test_prompts_from_json_lines(tmp_path):
    path = tmp_path / "prompts.jsonl"
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a\u2028b"}]
    lines = [
        json.dumps({"prompt": "one\ntwo", "id": 3}),
        "",
        json.dumps({"messages": chat}, ensure_ascii=False),
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert read_prompts(path) == ["one\ntwo", chat]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("one", r"prompts.jsonl, line 2 is not JSON"),
        ("5", r"prompts.jsonl, line 2: expected an object with either prompt .*, got 5"),
        ('{"text": "one"}', "line 2: expected an object with either prompt"),
        ('{"prompt": 1}', "line 2: expected an object with either prompt"),
        ('{"messages": ["one"]}', "line 2: expected an object with either prompt"),
        ('{"prompt": "1", "messages": [{"role": "user", "content": "1"}]}', "line 2: expected an object"),
    ],
)
def test_a_line_without_prompt_is_named(tmp_path, line, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "1"}\n' + line, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_prompts(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"one\n\ncaf\xe9\n", r"p\.txt, line 3 is no UTF-8 text: the byte 0xe9, at position 4"),
        (
            "p.jsonl",
            b'{"prompt": "1"}\n{"prompt": "\xe9"}',
            r"p\.jsonl, line 2 is no UTF-8 text: the byte 0xe9",
        ),
        (
            "p.jsonl",
            b'\n{"prompt": "\\ud800"}',
            r"p\.jsonl, line 2 is no UTF-8 text: half a character, \\ud800",
        ),
        (
            "p.jsonl",
            b'{"messages": [{"role": "user", "content": "\\udfff"}]}',
            r"p\.jsonl, line 1 is no UTF-8 text: half a character, \\udfff",
        ),
    ],
)
def test_what_is_no_text_is_named_with_its_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(path)


def test_standard_input_that_is_no_text_is_named_with_its_line(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo \xff\n"), encoding="utf-8"))
    with pytest.raises(ValueError, match=r"standard input, line 2 is no UTF-8 text: the byte 0xff"):
        read_prompts("-")


@pytest.mark.parametrize("text", ["\ud800", "one \udcff", "\udc00\ud800"])
def test_a_prompt_that_is_no_text_is_refused_before_anything_is_written(text):
    for prompt in (text, [{"role": "user", "content": text}]):
        with pytest.raises(ValueError, match="prompt 2 is no UTF-8 text"):
            toy(["1", prompt])


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"prompts come from .txt and .jsonl files .*, got .*prompts.json"):
        read_prompts(tmp_path / "prompts.json")
    with pytest.raises(FileNotFoundError):
        read_prompts(tmp_path / "prompts.txt")

"""What the playground works out (``lib/play_*.js``), in Node: no browser, no stack."""

import ast
import json
import math
import shlex
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_rating import Rate, cost
from inferbus_rating.ledger import text as decimal_text

from tests.console.in_node import FEW, Js, found_node, play_modules

ROOT = "https://ai.example:8443"


@pytest.fixture(scope="module")
def js(tmp_path_factory: pytest.TempPathFactory) -> Js:
    node = found_node()
    if node is None:
        pytest.skip("node is missing: make install-dev")
    return play_modules(node, tmp_path_factory.mktemp("play-js"))


# --- server-sent events -----------------------------------------------------------------------------------------------

_LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=12)


@FEW
@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(_LINE, st.lists(_LINE, min_size=1, max_size=3), _LINE), max_size=5),
            st.sampled_from(["\n", "\r\n", "\r"]),
            st.lists(st.integers(0, 400), max_size=12),
        ),
        min_size=40, max_size=40,
    )
)  # fmt: skip
def test_events_are_the_same_however_their_bytes_are_cut(
    js: Js, cases: list[tuple[list[tuple[str, list[str], str]], str, list[int]]]
) -> None:
    """(id, data lines, comment) of each event; what ends a line; where the bytes are cut."""
    asked, wanted = [], []
    for events, end, cuts in cases:
        lines: list[str] = []
        told, last = [], ""
        for name, data, comment in events:
            lines += [f":{comment}"] + ([f"id: {name}"] if name else []) + [f"data: {one}" for one in data] + [""]
            last = name or last
            told.append({"id": last, "data": "\n".join(data)})
        raw = ("\ufeff" + "".join(f"{one}{end}" for one in [*lines, ""])).encode()
        places = sorted({min(cut, len(raw)) for cut in cuts} | {0, len(raw)})
        asked.append([list(raw[a:b]) for a, b in pairwise(places)])
        wanted.append(told)
    body = "return input.map((parts) => { const reader = sse.eventReader(); return parts.flatMap((part) => reader.feed("
    assert js(f"{body}Uint8Array.from(part))); }});", asked) == wanted


def test_what_is_no_field_of_ours_is_passed_over(js: Js) -> None:
    said = 'data\ndata:{"a":1}\n\nevent: x\nretry: 5\nid\n\nid: 7\nfoo: bar\ndata: y\n\ndata: not whole'
    body = "return sse.eventReader().feed(new TextEncoder().encode(input));"
    assert js(body, said) == [{"id": "", "data": '\n{"a":1}'}, {"id": "7", "data": "y"}]


# --- cost -------------------------------------------------------------------------------------------------------------

_AMOUNT = st.decimals(0, 10**6, places=12) | st.sampled_from([Decimal("0.05"), Decimal("0.000000000001"), Decimal(0)])


@FEW
@given(
    st.lists(
        st.tuples(
            st.tuples(*[st.integers(0, 2_000_000)] * 4),
            st.tuples(*[_AMOUNT] * 6),
            st.sampled_from([Decimal(1), Decimal("0.5"), Decimal("0.333333333333")]),
            st.booleans(),
        ),
        min_size=60, max_size=60,
    )
)  # fmt: skip
def test_a_cost_is_what_the_meter_charges_to_the_last_decimal(js: Js, cases: list[Any]) -> None:
    asked, wanted = [], []
    for (read, cached, written, thought), amounts, factor, answered in cases:
        usage = Usage(input_tokens=read, cached_input_tokens=cached, output_tokens=written, reasoning_tokens=thought)
        rate = Rate("v", "USD", *amounts, factor=factor)
        names = ("input", "cached_input", "output", "reasoning")
        shown = {f"{name}_per_million": decimal_text(amounts[at]) for at, name in enumerate(names)}
        shown |= {"per_call": decimal_text(amounts[4]), "minimum": decimal_text(amounts[5])}
        tokens = {"input": read, "cached": cached, "output": written, "reasoning": thought}
        asked.append([tokens, {**shown, "factor": decimal_text(factor)}, answered])
        wanted.append(decimal_text(cost(usage, rate, first_choice=True, answered=answered)))
    assert js("return input.map((one) => cost.costOf(...one));", asked) == wanted


def test_the_rate_is_that_of_who_answered(js: Js) -> None:
    entries = [{"model": "a", "revision": "1"}, {"model": "b", "revision": "7", "rate": {}}]
    body = "return input.asked.map(([model, revision]) => cost.entryOf(input.entries, model, revision)?.model ?? null);"
    asked = [["a", "1"], ["a", ""], ["b", "7"], ["b", "8"], ["c", ""]]
    assert js(body, {"entries": entries, "asked": asked}) == ["a", "a", "b", None, None]


# --- figures ----------------------------------------------------------------------------------------------------------


def chunk(tokens: int, text: str = "", finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """As the API streams it, with usage in every one."""
    usage = {
        "prompt_tokens": 9 if finish else 0, "completion_tokens": tokens,
        "prompt_tokens_details": {"cached_tokens": 4 if finish else 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }  # fmt: skip
    choice = {"index": 0, "delta": {"content": text, **delta}, "finish_reason": finish}
    return {"model": "m", "system_fingerprint": "rev-1", "choices": [choice], "usage": usage}


FOLD = (
    "const one = figures.sent(input.sent, 'm');"
    "for (const [at, said] of input.came) figures.take(one, said, at);"
    "if (input.ended) figures.ended(one, 'done', input.ended);"
    "return {...one, rates: figures.rates(one, input.now ?? 0)};"
)


def test_times_and_tokens_of_an_answer(js: Js) -> None:
    came = [
        [130, chunk(0)], [150, chunk(1, "a")], [160, chunk(2, "b")], [170, chunk(3, "c")], [200, chunk(6, "def")],
        [201, chunk(6, "", "length")],
    ]  # fmt: skip
    found = js(FOLD, {"sent": 100, "came": came, "ended": 205})
    assert (found["text"], found["finish"], found["revision"], found["state"]) == ("abcdef", "length", "rev-1", "done")
    assert found["usage"] == {"input": 9, "cached": 4, "output": 6, "reasoning": 0}
    rates = found["rates"]
    assert (rates["ttftMs"], rates["elapsedMs"], rates["longestMs"]) == (50, 105, 30)
    assert rates["tokensPerSecond"] == pytest.approx(5 / 0.050)
    assert rates["itlMs"] == pytest.approx(10, rel=0.02)


def test_before_there_is_something_to_divide_by_nothing_is_said(js: Js) -> None:
    waiting = js(FOLD, {"sent": 100, "came": [[110, chunk(0)]], "now": 140})
    assert waiting["state"] == "waiting"
    nothing = {"ttftMs": None, "tokensPerSecond": None, "itlMs": None, "longestMs": None}
    assert waiting["rates"] == {**nothing, "elapsedMs": 40}
    # All of it in one piece: it came, but at what pace nobody saw.
    together = js(FOLD, {"sent": 100, "came": [[150, chunk(n, "x")] for n in range(1, 6)], "now": 160})
    assert together["rates"] == {**nothing, "ttftMs": 50, "elapsedMs": 60}
    assert together["usage"]["input"] is None


@FEW
@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 500), st.integers(1, 5)), min_size=1, max_size=40), min_size=30, max_size=30
    )
)
def test_gaps_are_shared_by_tokens_that_came_together(js: Js, answers: list[list[tuple[int, int]]]) -> None:
    """(milliseconds before, tokens) of each arrival; its tokens as events of one each."""
    asked = []
    for arrivals in answers:
        at, tokens, came = 0, 0, []
        for gap, count in arrivals:
            at += gap
            for _ in range(count):
                tokens += 1
                came.append([at, chunk(tokens, "x")])
        asked.append({"sent": 0, "came": came})
    found = js(f"return input.map((input) => {{ {FOLD} }});", asked)
    for arrivals, one in zip(answers, found, strict=True):
        gaps = sorted(gap / count for gap, count in arrivals[1:] for _ in range(count))
        rates = one["rates"]
        if not gaps:
            assert (rates["itlMs"], rates["tokensPerSecond"]) == (None, None)
            continue
        middle = gaps[math.ceil(len(gaps) / 2) - 1]
        assert rates["itlMs"] == pytest.approx(middle, rel=0.011)
        assert rates["tokensPerSecond"] == pytest.approx(len(gaps) * 1000 / sum(gap for gap, _ in arrivals[1:]))
        assert rates["longestMs"] == max(gap for gap, _ in arrivals[1:])


def test_thoughts_and_calls_are_no_text(js: Js) -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "now", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"zone":1}'}}
    came = [
        [1, chunk(1, "", reasoning_content="hm")], [2, chunk(2, "", tool_calls=[call])],
        [3, chunk(3, "", tool_calls=[more])],
    ]  # fmt: skip
    found = js(FOLD, {"sent": 0, "came": came})
    assert (found["text"], found["thought"]) == ("", "hm")
    assert found["calls"] == [{"name": "now", "arguments": '{"zone":1}'}]


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_what_is_typed_becomes_the_bodys_values(js: Js) -> None:
    typed = {
        "temperature": " 0.7", "top_p": "1", "max_tokens": "16", "seed": "-3", "stop": "END\n\n\\n\\n",
        "frequency_penalty": "", "more": '{"top_k": 20, "logit_bias": {"5": -1}}',
    }  # fmt: skip
    assert js("return form.valuesOf(input);", typed) == {
        "values": {
            "temperature": 0.7, "top_p": 1, "max_completion_tokens": 16, "seed": -3, "stop": ["END", "\n\n"],
            "top_k": 20, "logit_bias": {"5": -1},
        },
        "fault": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("temperature", "warm", "Temperature: a number, as 0.7."), ("seed", "1.5", "Seed: a whole number below 2^53."),
        ("seed", str(2**53), "Seed: a whole number below 2^53."), ("stop", "a\nb\nc\nd\ne", "Stop, one a line: at"),
        ("more", "{", "More, as JSON: no JSON"), ("more", "[1]", "More, as JSON: an object"),
        ("more", '{"stream": false}', "More, as JSON: 'stream' is not for here."),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_and_not_asked(js: Js, name: str, text: str, fault: str) -> None:
    found = js("return form.valuesOf(input);", {name: text})
    assert found["values"] == {}
    assert found["fault"].startswith(fault)


def test_a_columns_own_go_before_those_of_all(js: Js) -> None:
    merged = js("return form.merged(...input);", [{"temperature": "1", "seed": "5"}, {"temperature": "0", "seed": " "}])
    assert (merged["temperature"], merged["seed"], merged["top_p"]) == ("0", "5", "")


def test_a_conversation_is_each_columns_own(js: Js) -> None:
    said = ["one", "two", "three"]
    body = "return form.messagesOf(...input).map((one) => `${one.role}: ${one.content}`);"
    assert js(body, ["Be brief.", said, ["1", "", None], 2]) == [
        "system: Be brief.", "user: one", "assistant: 1", "user: three",
    ]  # fmt: skip
    assert js(body, [" ", said, ["1", "2", "3"], 0]) == ["user: one"]


_TYPED = st.dictionaries(
    st.sampled_from(["temperature", "top_p", "max_tokens", "seed", "stop", "more"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda one: one != "none"),
)


@FEW
@given(
    st.lists(
        st.tuples(
            st.lists(
                st.tuples(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), _TYPED), max_size=4
            ),
            _TYPED,
        ),
        min_size=30, max_size=30,
    )
)  # fmt: skip
def test_the_address_gives_back_what_it_was_given(js: Js, cases: list[Any]) -> None:
    asked = [{"models": [m for m, _ in columns], "own": [o for _, o in columns], "shared": s} for columns, s in cases]
    body = (
        "return input.map((one) => {"
        "const pairs = Object.entries(form.toQuery(one)).filter(([, value]) => value !== '');"
        "const query = new URLSearchParams(new URLSearchParams(pairs).toString());"
        "return form.fromQuery(Object.fromEntries(query)); });"
    )
    for said, found in zip(asked, js(body, asked), strict=True):
        assert found["models"] == said["models"]
        assert {name: text for name, text in found["shared"].items() if text} == {
            name: text for name, text in said["shared"].items() if text
        }
        for given_, own in zip(said["own"], found["own"], strict=True):
            assert {name: text for name, text in own.items() if text} == {n: t for n, t in given_.items() if t}


def test_nobody_asks_for_a_whole_context_by_accident(js: Js) -> None:
    body = "return [form.fromQuery({}), form.fromQuery(form.toQuery({models: [], shared: {}, own: []}))];"
    assert [one["shared"]["max_tokens"] for one in js(body)] == ["512", ""]


# --- the same call elsewhere ------------------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab'\"\\$\n", max_size=4), inner, max_size=3),
    max_leaves=8,
)


@FEW
@given(st.lists(st.tuples(st.text("a'\"\\$`!\n\té日𝄞\x7f", max_size=20), _JSON), min_size=40, max_size=40))
def test_the_commands_ask_what_the_page_asks(js: Js, cases: list[tuple[str, Any]]) -> None:
    messages = [[{"role": "user", "content": text}] for text, _ in cases]
    values = [{"temperature": 0.5, "top_k": 4, "metadata": {"x": extra}} for _, extra in cases]
    body = (
        "return input.cases.map(([messages, values]) => { const body = form.bodyOf('m/1', messages, values);"
        "return [code.curlOf(input.root, body), code.pythonOf(input.root, body)]; });"
    )
    asked = {"root": ROOT, "cases": list(zip(messages, values, strict=True))}
    for said, value, (curl, python) in zip(messages, values, js(body, asked), strict=True):
        words = shlex.split(curl.replace("\\\n", ""))
        assert words[:3] == ["curl", "-N", f"{ROOT}/v1/chat/completions"]
        assert "Authorization: Bearer $INFERBUS_KEY" in words
        body_ = json.loads(words[words.index("-d") + 1])
        options = {"include_usage": True}
        assert body_ == {"model": "m/1", "messages": said, **value, "stream": True, "stream_options": options}
        call = next(
            node for node in ast.walk(ast.parse(python))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "client.chat.completions.create"
        )  # fmt: skip
        given_ = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
        extra = {"top_k": 4}
        assert given_ == {
            "model": "m/1", "messages": said, "temperature": 0.5, "metadata": value["metadata"], "stream": True,
            "extra_body": extra,
        }  # fmt: skip


# --- long texts -------------------------------------------------------------------------------------------------------


@FEW
@given(st.lists(st.lists(st.text("ab\n", max_size=3000), max_size=6), min_size=20, max_size=20))
def test_blocks_lose_no_letter_and_stay_small(js: Js, answers: list[list[str]]) -> None:
    body = (
        "return input.map((texts) => { const blocks = ['']; for (const one of texts)"
        " for (const part of text.cut(one, blocks.at(-1).length))"
        " if (part.anew) blocks.push(part.text); else blocks[blocks.length - 1] += part.text; return blocks; });"
    )
    for texts, blocks in zip(answers, js(body, answers), strict=True):
        assert "\n".join(blocks) == "".join(texts)
        for one in blocks:
            assert "\n" not in one[2000:]


def test_no_module_of_it_is_forgotten_here() -> None:
    """Those that neither ask nor draw are tested above."""
    lib = Path(__file__).parents[2] / "services" / "edge" / "src" / "inferbus_edge" / "console" / "lib"
    draws = {"column", "copy", "facts", "fields", "key", "stream"}
    assert {one.stem.removeprefix("play_") for one in lib.glob("play_*.js")} == draws | {
        "sse", "cost", "figures", "form", "code", "text",
    }  # fmt: skip

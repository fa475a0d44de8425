"""What may be entered for a new batch (``lib/batches_form.js``), in Node, held to what the API takes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_batch.core.lines import ENDPOINTS
from inferbus_batch.uploads import MAX_PART_BYTES, MAX_PARTS, MAX_UPLOAD_BYTES
from inferbus_dialect.batches import seconds_of
from inferbus_runtime.errors import InferBusError

from tests.console.in_node import FEW, Js

LINE = '{"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": {}}'


def test_what_the_api_takes_is_what_the_page_knows(js: Js) -> None:
    listed, part, most = js("return [form.ENDPOINTS, form.PART_BYTES, form.MAX_BYTES];")
    assert set(listed) == set(ENDPOINTS)
    assert (part, most) == (MAX_PART_BYTES, MAX_UPLOAD_BYTES)
    assert js("return form.partsOf(form.MAX_BYTES).length;") <= MAX_PARTS


@FEW
@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**5)), min_size=50))
def test_the_parts_of_a_file_are_all_of_it_in_order(js: Js, cases: list[tuple[int, int]]) -> None:
    cases = [(size, max(part, size // 1000)) for size, part in cases]
    for (size, part), parts in zip(cases, js("return input.map((one) => form.partsOf(...one));", cases), strict=True):
        assert [start for start, _ in parts] == [0, *(end for _, end in parts[:-1])]
        assert parts[-1][1] == size
        assert all(0 < end - start <= part for start, end in parts)


@FEW
@given(st.lists(st.tuples(st.one_of(st.integers(-3, 30_000), st.just("")), st.sampled_from("mhd")), min_size=100))
def test_a_time_is_taken_if_and_only_if_the_api_takes_it(js: Js, cases: list[tuple[Any, str]]) -> None:
    found = js("return input.map(([amount, unit]) => form.formFault({amount, unit, metadata: []}));", cases)
    for (amount, unit), fault in zip(cases, found, strict=True):
        try:
            seconds_of(f"{amount}{unit}")
        except InferBusError:
            assert fault["field"] == "amount"
        else:
            assert fault is None


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        ([["team", "search"], ["", ""]], None),
        ([[f"n{at}", "v"] for at in range(16)], None),
        ([[f"n{at}", "v"] for at in range(17)], "16 entries"),
        ([["", "v"]], "no name"),
        ([["a", "1"], ["a", "2"]], "'a'"),
        ([["n" * 65, ""]], "64 characters"),
        ([["n" * 64, "v" * 512]], None),
        ([["n", "v" * 513]], "value 512"),
        ([["é" * 64, "😀" * 512]], None),
    ],
)
def test_metadata_within_the_apis_bounds(js: Js, metadata: list[list[str]], fault: str | None) -> None:
    found = js('return form.formFault({amount: "24", unit: "h", metadata: input});', metadata)
    assert found is None if fault is None else fault in found["message"]


def test_the_call_that_a_form_comes_to(js: Js) -> None:
    draft = "{endpoint: '/v1/x', amount: '90', unit: 'm', metadata}"
    body = f"return input.map((metadata) => form.requestOf({draft}, 'file-1'));"
    bare, full = js(body, [[["", ""]], [["__proto__", "x"], ["team", "search"]]])
    assert bare == {"input_file_id": "file-1", "endpoint": "/v1/x", "completion_window": "90m"}
    assert full == {**bare, "metadata": {"__proto__": "x", "team": "search"}}


@pytest.mark.parametrize(
    ("head", "whole", "endpoint", "fault"),
    [
        (f"{LINE}\n{{", False, "/v1/embeddings", ""),
        (LINE, True, "/v1/embeddings", ""),
        (f"\ufeff{LINE}\r\n", True, "/v1/embeddings", ""),
        (LINE[:-9], False, "", ""),  # a long line: nothing is known
        (LINE[:-9], True, "", "no JSON object"),
        ("", True, "", ""),
        ("\n", True, "", ""),
        (f"[{LINE}]", True, "", "JSON list"),
        ("custom_id,url,body\n", False, "", "no JSON object"),
        ("null\n", True, "", "no JSON object"),
        ('{"custom_id": 1, "body": {}}\n', True, "", "'url'"),
        ('{"custom_id": 1, "url": "/v1/x", "body": {}}\n', True, "", "'/v1/x'"),
    ],
)
def test_a_file_by_its_first_line(js: Js, head: str, whole: bool, endpoint: str, fault: str) -> None:
    found = js("return form.firstLine(...input);", [head, whole])
    assert found["endpoint"] == endpoint
    assert fault in found["fault"]
    assert bool(fault) == bool(found["fault"])


@pytest.mark.parametrize(
    ("name", "size", "fault"),
    [
        ("in.jsonl", 1, ""), ("in.jsonl", 0, "empty"), ("in.jsonl", 8 << 30, ""), ("in.jsonl", (8 << 30) + 1, "8 GiB"),
        ("a\nb", 1, "name"), ("x" * 513, 1, "name"),
    ],
)  # fmt: skip
def test_a_file_by_its_name_and_size(js: Js, name: str, size: int, fault: str) -> None:
    found = js("return form.fileFault(input);", {"name": name, "size": size})
    assert fault in found
    assert bool(fault) == bool(found)

"""The Open Inference Protocol without a server: what a call may say, its tensors, and its answer in each form."""

import json
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Close
from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus.inference.v1.inference_pb2 import (
    InferOutputTensor,
    InferParameter,
    InferTensorContents,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataResponse,
)
from inferbus_dialect.schema import MAX_VALUES
from inferbus_edge.core.inference_v2 import JSON, PROTOBUF, check_call, check_version, metadata_of, plan_call
from inferbus_edge.core.inference_v2_form import MAX_BYTES, InferenceForm
from inferbus_edge.core.inference_v2_request import Inferring, inferring_of, parse_json, read_protobuf
from inferbus_edge.core.inference_v2_tensors import (
    MAX_TEXTS,
    Room,
    TensorError,
    check_raw,
    json_of,
    raw_of_contents,
    raw_of_json,
)
from inferbus_runtime.errors import InferBusError

X: dict[str, Any] = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5]}
METADATA = ModelMetadataResponse(platform="python")
METADATA.inputs.add(name="x", datatype="FP32", shape=[-1, 2])
METADATA.inputs.add(name="words", datatype="BYTES", shape=[2])
METADATA.outputs.add(name="y", datatype="FP32", shape=[-1, 2])
METADATA.outputs.add(name="z", datatype="BYTES", shape=[-1])
BOUND = 1 << 20


def body(*inputs: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"inputs": list(inputs or (X,)), **fields}).encode()


def parse_protobuf(sent: bytes) -> Inferring:
    return inferring_of(read_protobuf(sent))


def checked(asked: Inferring) -> Inferring:
    check_call(asked, METADATA)
    return asked


def texts(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(one)) + one for one in values)


# --- tensors ----------------------------------------------------------------------------------------------------------

_INTEGERS = {f"{sign}INT{bits}": (sign, bits) for sign in ("", "U") for bits in (8, 16, 32, 64)}


def integers(datatype: str) -> st.SearchStrategy[int]:
    sign, bits = _INTEGERS[datatype]
    return st.integers(0, 2**bits - 1) if sign else st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


TENSORS = st.one_of(
    *(st.tuples(st.just(name), st.lists(integers(name), max_size=8)) for name in _INTEGERS),
    st.tuples(st.just("BOOL"), st.lists(st.booleans(), max_size=8)),
    st.tuples(st.just("FP16"), st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), max_size=8)),
    st.tuples(st.just("FP32"), st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=8)),
    st.tuples(st.just("FP64"), st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=8)),
    st.tuples(st.just("BYTES"), st.lists(st.text(max_size=9), max_size=8)),
)


@given(TENSORS)
def test_what_json_says_comes_back(tensor: tuple[str, list[Any]]) -> None:
    datatype, values = tensor
    raw = raw_of_json(datatype, values, Room())
    check_raw(datatype, [len(values)], raw, Room())
    shown = json.loads(json_of(datatype, raw, Room()))
    assert raw_of_json(datatype, shown, Room()) == raw
    assert datatype in ("FP16", "FP32") or shown == values  # those are shown with as few digits as name them


@given(TENSORS.filter(lambda one: one[0] != "FP16"))
def test_typed_contents_are_the_same_bytes_as_json(tensor: tuple[str, list[Any]]) -> None:
    datatype, values = tensor
    kind = datatype.lower().rstrip("1234568") if datatype != "BYTES" else "bytes"
    wide = datatype.lower() if datatype in ("INT64", "UINT64", "FP32", "FP64") else kind
    given_values = [one.encode() for one in values] if datatype == "BYTES" else values
    contents = InferTensorContents(**{f"{wide}_contents": given_values})
    assert raw_of_contents(datatype, contents, Room()) == raw_of_json(datatype, values, Room())


@pytest.mark.parametrize(
    ("datatype", "values", "fault"),
    [
        ("INT8", [128], "INT8 cannot have"), ("UINT64", [-1], "UINT64 cannot have"), ("INT32", [1.0], "whole numbers"),
        ("INT32", [True], "whole numbers"), ("BOOL", [1], "true or false"), ("FP32", ["1"], "numbers"),
        ("FP32", [True], "numbers"), ("FP32", [None], "numbers"), ("FP32", [1e39], "FP32 cannot have"),
        ("FP64", [math.nan], "send NaN"), ("BYTES", [1], "texts"), ("BF16", [1.0], "binary data"),
        ("FP32", [[1], 2], "mixes"), ("FP32", [1, [2]], "numbers"), ("BYTES", ["\ud800"], "half a character"),
        ("BYTES", [""] * (MAX_TEXTS + 1), "more than"),
    ],
)  # fmt: skip
def test_values_that_a_datatype_cannot_have(datatype: str, values: list[Any], fault: str) -> None:
    with pytest.raises(TensorError, match=fault):
        raw_of_json(datatype, values, Room())


def test_nan_and_infinities_go_as_contents_and_are_null_in_json() -> None:
    raw = raw_of_contents("FP32", InferTensorContents(fp32_contents=[math.nan, math.inf, 1.5]), Room())
    assert json_of("FP32", raw, Room()) == b"[null,null,1.5]"


def test_bf16_is_shown_as_the_number_that_it_is() -> None:
    upper = np.array([1.5, -2.0], np.float32).view(np.uint32) >> 16
    assert json_of("BF16", upper.astype("<u2").tobytes(), Room()) == b"[1.5,-2.0]"


@pytest.mark.parametrize(
    ("datatype", "shape", "raw"),
    [
        ("FP32", [2], b"1234567"), ("FP32", [2], b"123456789"), ("BOOL", [1 << 61], b""), ("INT8", [], b""),
        ("BYTES", [1], b""), ("BYTES", [1], b"\1\0\0"), ("BYTES", [1], b"\2\0\0\0a"), ("BYTES", [1], texts(b"a", b"b")),
        ("BYTES", [MAX_TEXTS + 1], b"\0\0\0\0" * (MAX_TEXTS + 1)), ("FP32", [1 << 61, 1 << 61, 0], b""),
    ],
)  # fmt: skip
def test_raw_data_that_its_shape_does_not_have(datatype: str, shape: list[int], raw: bytes) -> None:
    with pytest.raises(TensorError):
        check_raw(datatype, shape, raw, Room())


def test_raw_data_of_no_elements() -> None:
    check_raw("BYTES", [0, 4], b"", Room())
    check_raw("FP64", [3, 0], b"", Room())
    check_raw("INT8", [], b"1", Room())  # a scalar


# --- requests ---------------------------------------------------------------------------------------------------------


def test_json_becomes_the_message_that_a_server_takes() -> None:
    asked = parse_json(
        body(
            {**X, "shape": [2, 2], "data": [[1, 2], [3, 4]]},
            {"name": "words", "shape": [2], "datatype": "BYTES", "data": ["ä", ""], "parameters": {"lang": "de"}},
            id="7",
            parameters={"binary_data_output": True, "n": 1, "big": 2**63, "f": 0.5, "b": False},
            outputs=[{"name": "y"}, {"name": "z", "parameters": {"binary_data": False, "classification": 2}}],
        )
    )
    message = checked(asked).message
    assert (message.id, asked.binary, asked.outputs) == ("7", True, {"y": True, "z": False})
    assert message.raw_input_contents == [np.arange(1, 5, dtype="<f4").tobytes(), texts("ä".encode(), b"")]
    assert dict(message.parameters) == {
        "n": InferParameter(int64_param=1), "big": InferParameter(uint64_param=2**63),
        "f": InferParameter(double_param=0.5), "b": InferParameter(bool_param=False),
    }  # fmt: skip
    assert dict(message.inputs[1].parameters) == {"lang": InferParameter(string_param="de")}
    assert dict(message.outputs[1].parameters) == {"classification": InferParameter(int64_param=2)}
    assert not message.inputs[0].parameters


def test_binary_data_is_cut_in_the_order_of_the_inputs() -> None:
    words, numbers = texts(b"\xff", b"b"), np.array([1, 2], "<f4").tobytes()
    head = body(
        {"name": "words", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(words)}},
        {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": len(numbers)}},
    )
    asked = checked(parse_json(head + words + numbers, str(len(head))))
    assert asked.message.raw_input_contents == [words, numbers]


HEAD = body({"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}})


@pytest.mark.parametrize(
    ("sent", "length", "param"),
    [
        (HEAD + b"1" * 9, str(len(HEAD)), "Inference-Header-Content-Length"),
        (HEAD + b"1" * 7, str(len(HEAD)), "inputs[0].parameters.binary_data_size"),
        (HEAD + b"1" * 8, str(len(HEAD) + 9), "Inference-Header-Content-Length"),
        (HEAD + b"1" * 8, "-1", "Inference-Header-Content-Length"),
        (HEAD + b"1" * 8, "²", "Inference-Header-Content-Length"),
        (HEAD, None, "inputs[0].parameters.binary_data_size"),
        (body() + b"1", str(len(body())), "Inference-Header-Content-Length"),
        (body({**X, "parameters": {"binary_data_size": 0}}), None, "inputs[0]"),
        (body({"name": "x", "shape": [1, 2], "datatype": "FP32"}), None, "inputs[0]"),
        (body({**X, "datatype": "FP31"}), None, "inputs[0].datatype"),
        (body({**X, "shape": [-1, 2]}), None, "inputs[0].shape[0]"),
        (body({**X, "shape": [True, 2]}), None, "inputs[0].shape[0]"),
        (body({**X, "data": [1, "2"]}), None, "inputs[0].data"),
        (body({**X, "surprise": 1}), None, "inputs[0].surprise"),
        (body({**X, "parameters": {"a": [1]}}), None, "inputs[0].parameters"),
        (body({**X, "parameters": {"shared_memory_region": "r"}}), None, "inputs[0].parameters.shared_memory_region"),
        (body(parameters={"sequence_id": 1}), None, "parameters.sequence_id"),
        (body(parameters={"priority": 1}), None, "parameters.priority"),
        (body(parameters={"triton_anything": 1}), None, "parameters.triton_anything"),
        (body(parameters={"binary_data_output": 1}), None, "parameters.binary_data_output"),
        (body(outputs=[{"name": "y", "parameters": {"shared_memory_offset": 1}}]), None,
         "outputs[0].parameters.shared_memory_offset"),
        (b'{"inputs": []}', None, "inputs"), (b"{}", None, "inputs"), (b"[]", None, ""), (b"\xff", None, ""),
    ],
)  # fmt: skip
def test_what_is_refused(sent: bytes, length: str | None, param: str) -> None:
    with pytest.raises(InferBusError) as caught:
        parse_json(sent, length)
    assert caught.value.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT
    assert caught.value.param.startswith(param)
    assert caught.value.param or not param


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "w"}, "no 'w' among its inputs: 'x', 'words'"),
        ({"datatype": "FP64"}, "takes FP32"), ({"shape": [2]}, "takes [-1,2] (-1: any length)"),
        ({"shape": [2, 1]}, "takes [-1,2]"), ({"shape": [2, 2]}, "16 bytes"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_the_models(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InferBusError) as caught:
        checked(parse_json(body({**X, **fields})))
    assert caught.value.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT
    assert said in caught.value.message


def test_names_twice_and_outputs_that_there_are_not() -> None:
    with pytest.raises(InferBusError, match="second time"):
        checked(parse_json(body(X, X)))
    with pytest.raises(InferBusError, match="no 'w' among its outputs"):
        checked(parse_json(body(outputs=[{"name": "w"}])))
    check_call(parse_json(body({**X, "name": "w"})), ModelMetadataResponse())  # it says nothing of its tensors


def test_contents_become_raw_and_exclude_it() -> None:
    message = ModelInferRequest(id="a")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1, 2.5])
    asked = checked(parse_protobuf(message.SerializeToString()))
    assert asked.message.raw_input_contents == parse_json(body()).message.raw_input_contents
    assert not asked.message.inputs[0].HasField("contents")
    message.raw_input_contents.append(b"1" * 8)
    with pytest.raises(InferBusError, match="exclude"):
        parse_protobuf(message.SerializeToString())
    message.raw_input_contents.append(b"")
    with pytest.raises(InferBusError, match="one entry for each"):
        parse_protobuf(message.SerializeToString())


@pytest.mark.parametrize(
    ("change", "param"),
    [
        (lambda one: one.inputs.add(name="w", datatype="FP16", shape=[0]), "inputs[1].contents"),
        (lambda one: one.inputs[0].contents.int_contents.append(1), "inputs[0].contents"),
        (lambda one: one.inputs[0].shape.insert(0, -1), "inputs[0].shape"),
        (lambda one: one.inputs[0].shape.extend([1] * 40), "inputs[0].shape"),
        (lambda one: one.inputs[0].parameters["shared_memory_region"].CopyFrom(InferParameter(string_param="r")),
         "inputs[0].parameters.shared_memory_region"),
        (lambda one: one.outputs.add(name="y").parameters["shared_memory_region"].CopyFrom(InferParameter()),
         "outputs[0].parameters.shared_memory_region"),
        (lambda one: one.parameters["sequence_start"].CopyFrom(InferParameter(bool_param=True)),
         "parameters.sequence_start"),
        (lambda one: one.MergeFrom(ModelInferRequest(id="a" * 513)), "id"),
        (lambda one: one.ClearField("inputs"), "inputs"),
    ],
)  # fmt: skip
def test_messages_that_are_refused(change: Any, param: str) -> None:
    message = ModelInferRequest()
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1, 2.5])
    parse_protobuf(message.SerializeToString())
    change(message)
    with pytest.raises(InferBusError) as caught:
        parse_protobuf(message.SerializeToString())
    assert caught.value.param == param


def test_elements_are_bounded_over_all_tensors_of_a_call() -> None:
    """Each takes the event loop's time, whatever tensor it is in."""
    half = MAX_TEXTS // 2 + 1
    words = [{"name": name, "shape": [half], "datatype": "BYTES", "data": [""] * half} for name in "ab"]
    parse_json(body(words[0]))
    raw, typed = ModelInferRequest(), ModelInferRequest()
    for name in "ab":
        raw.inputs.add(name=name, datatype="BYTES", shape=[half])
        raw.raw_input_contents.append(bytes(4 * half))
        tensor = typed.inputs.add(name=name, datatype="INT8", shape=[MAX_VALUES])
        tensor.contents.int_contents.extend([1] * MAX_VALUES)
    asked: list[Callable[[], object]] = [
        lambda: parse_json(body(*words)),
        lambda: check_call(parse_protobuf(raw.SerializeToString()), ModelMetadataResponse()),
        lambda: parse_protobuf(typed.SerializeToString()),
    ]
    for one in asked:
        with pytest.raises(InferBusError, match=r"'b' has more than .* with those before it") as caught:
            one()
        assert caught.value.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT


def test_a_call_that_is_larger_than_its_body_was() -> None:
    message = ModelInferRequest()
    message.inputs.add(name="n", datatype="INT64", shape=[4000]).contents.int64_contents.extend([1] * 4000)
    asked = parse_protobuf(message.SerializeToString())
    with pytest.raises(InferBusError) as caught:
        plan_call(asked, "m", PROTOBUF, 10_000)
    assert caught.value.reason == "request_too_large"


def test_only_the_served_version_is_asked() -> None:
    model = ModelRecord(name="m", revision="r", inference_metadata=METADATA.SerializeToString())
    check_version(model, "")
    check_version(model, "r")
    with pytest.raises(InferBusError, match="version 'r' only"):
        check_version(model, "1")
    assert (metadata_of(model).name, list(metadata_of(model).versions)) == ("m", ["r"])


_LEAF = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
_NAMES = st.sampled_from(["x", "words", "y", "w", ""])
_TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": _NAMES | _LEAF,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | _LEAF,
        "datatype": st.sampled_from(["FP32", "BYTES", "FP16", "BF16", "INT8", "UINT64", "BOOL", "FP8"]) | _LEAF,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "binary_data", "shared_memory_region", "k"]), _LEAF, max_size=2
        ),
        "data": st.recursive(_LEAF, lambda one: st.lists(one, max_size=4), max_leaves=8),
    },
)
_CALLS = st.fixed_dictionaries(
    {"inputs": st.lists(_TENSOR, max_size=3)},
    optional={
        "id": _LEAF,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_output", "priority", "k"]), _LEAF, max_size=2),
        "outputs": st.lists(_TENSOR, max_size=2),
    },
)


def only_refused(call: Callable[[], object]) -> None:
    """It is taken, or refused with a word: anything else is raised."""
    try:
        call()
    except InferBusError as error:
        if error.error_class != ErrorClass.ERROR_CLASS_INVALID_ARGUMENT or not error.message:
            raise


@given(_CALLS.map(lambda one: json.dumps(one).encode()) | st.binary(max_size=60), st.binary(max_size=20), st.data())
def test_nothing_but_a_refusal_comes_of_any_body(head: bytes, rest: bytes, data: st.DataObject) -> None:
    lengths = st.none() | st.integers(0, 90).map(str) | st.just(str(len(head))) | st.text(max_size=3)
    only_refused(lambda: plan_call(checked(parse_json(head + rest, data.draw(lengths))), "m", JSON, BOUND))


@given(_CALLS, st.binary(max_size=40))
def test_nothing_but_a_refusal_comes_of_any_message(call: dict[str, Any], junk: bytes) -> None:
    message = ModelInferRequest(raw_input_contents=[junk][: len(junk) % 2])
    for one in call["inputs"]:
        shape = one.get("shape")
        tensor = message.inputs.add(
            name="x" if not isinstance(one.get("name"), str) else one["name"],
            datatype=one["datatype"] if isinstance(one.get("datatype"), str) else "FP32",
            shape=shape if isinstance(shape, list) else [],
        )
        tensor.contents.fp32_contents.extend([1.0] * (len(junk) % 3))
    for sent in (message.SerializeToString(), message.SerializeToString() + junk, junk):
        only_refused(lambda sent=sent: plan_call(checked(parse_protobuf(sent)), "m", PROTOBUF, BOUND))


# --- answers ----------------------------------------------------------------------------------------------------------

NUMBERS = np.array([[1.5, 2], [3, 4]], "<f4")


def response() -> ModelInferResponse:
    message = ModelInferResponse(model_name="inside", model_version="1", id="inside")
    message.parameters["note"].string_param = "n"
    message.parameters["triton_inside"].bool_param = True
    shown = message.outputs.add(name="y", datatype="FP32", shape=[2, 2])
    shown.parameters["triton_place"].string_param = "inside"
    message.outputs.add(name="z", datatype="BYTES", shape=[2])
    message.raw_output_contents.extend([NUMBERS.tobytes(), texts("ä".encode(), b"b")])
    return message


def form_of(encoding: str = JSON, sent: bytes | None = None, *, size: int = 16, **fields: Any) -> InferenceForm:
    """An answer that came in parts of ``size`` bytes, not in order."""
    reply = {**plan_call(parse_json(body(**fields)), "m", encoding, BOUND).reply, "model": "m", "created": 1}
    form = InferenceForm(b"r" * 16, reply, False)
    form.open(0, "rev")
    data = response().SerializeToString() if sent is None else sent
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    for index in reversed(range(len(parts))):
        form.binary(index, parts[index])
    form.close(0, "rev", Close(finish_reason=FinishReason.FINISH_REASON_STOP))
    form.finish()
    return form


def test_json_has_the_public_names_and_nothing_of_the_inside() -> None:
    form = form_of(id="mine")
    assert json.loads(form.body()) == {
        "model_name": "m", "model_version": "rev", "id": "mine", "parameters": {"note": "n"},
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [1.5, 2.0, 3.0, 4.0]},
            {"name": "z", "datatype": "BYTES", "shape": [2], "data": ["ä", "b"]},
        ],
    }  # fmt: skip
    assert form.fields() == {"Content-Type": "application/json"}


def test_binary_data_stands_behind_the_json() -> None:
    form = form_of(
        parameters={"binary_data_output": True},
        outputs=[{"name": "y"}, {"name": "z", "parameters": {"binary_data": False}}],
    )
    whole = form.body()
    fields = form.fields()
    length = int(fields["Inference-Header-Content-Length"])
    assert fields["Content-Type"] == "application/octet-stream"
    head = json.loads(whole[:length])
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert "data" not in head["outputs"][0]
    assert head["outputs"][1]["data"] == ["ä", "b"]
    assert whole[length:] == NUMBERS.tobytes()


def test_typed_contents_of_an_answer_are_read_too() -> None:
    message = ModelInferResponse(outputs=[InferOutputTensor(name="y", datatype="INT64", shape=[2])])
    message.outputs[0].contents.int64_contents.extend([1, -2])
    assert json.loads(form_of(sent=message.SerializeToString()).body())["outputs"][0]["data"] == [1, -2]


def test_grpc_gets_the_message_under_the_public_name() -> None:
    form = form_of(PROTOBUF, id="mine")
    message = ModelInferResponse.FromString(form.body())
    assert (message.model_name, message.model_version, message.id) == ("m", "rev", "mine")
    assert message.raw_output_contents == response().raw_output_contents
    assert (list(message.parameters), list(message.outputs[0].parameters)) == (["note"], [])


def test_a_later_attempt_voids_what_an_earlier_one_left() -> None:
    form = form_of(size=10)
    form.open(0, "rev-2")
    with pytest.raises(InferBusError):
        form.body()
    form.binary(0, response().SerializeToString())
    form.close(0, "rev-2", Close())
    assert json.loads(form.body())["model_version"] == "rev-2"


@pytest.mark.parametrize("sent", [b"", b"\xff", b"\x2a\x01"])
def test_a_broken_answer_is_our_fault(sent: bytes) -> None:
    with pytest.raises(InferBusError) as caught:
        form_of(sent=sent).body()
    assert caught.value.error_class == ErrorClass.ERROR_CLASS_INTERNAL


def test_an_answer_with_a_hole_is_none() -> None:
    form = form_of(size=1000)
    form.binary(2, b"x")
    with pytest.raises(InferBusError) as caught:
        form.body()
    assert caught.value.error_class == ErrorClass.ERROR_CLASS_INTERNAL


def test_what_json_cannot_hold_is_to_be_asked_for_as_binary_data() -> None:
    message = ModelInferResponse(raw_output_contents=[texts(b"\xff")])
    message.outputs.add(name="z", datatype="BYTES", shape=[1])
    large = ModelInferResponse(raw_output_contents=[b"\0" * (MAX_VALUES + 1)])
    large.outputs.add(name="z", datatype="INT8", shape=[MAX_VALUES + 1])
    for one in (message, large):
        data = one.SerializeToString()
        with pytest.raises(InferBusError) as caught:
            form_of(sent=data, size=1 << 16).body()
        assert (caught.value.reason, "binary data" in caught.value.message) == ("answer_not_json", True)
        assert form_of(sent=data, size=1 << 16, parameters={"binary_data_output": True}).body()


def test_an_answer_is_bounded() -> None:
    form = form_of(size=1000)
    mebibyte = bytes(1 << 20)
    for index in range(1, (MAX_BYTES >> 20) + 1):
        form.binary(index, mebibyte)
    with pytest.raises(InferBusError) as caught:
        form.body()
    assert caught.value.reason == "answer_too_large"

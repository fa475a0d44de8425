"""What the page of deployments works out (``lib/deployments_data.js``, ``deployments_ask.js``), in Node."""

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.revision_pb2 import (
    RolloutFigure,
    RolloutRecord,
    RolloutState,
    RolloutStrategy,
    RolloutVerdict,
)
from inferbus.scheduler.v1.rollout_pb2 import RolloutMove, StartRolloutRequest

from tests.console.in_node import FEW, Js, deployment_modules, found_node

THIN = "\u202f"
STATES = [one for one in RolloutState.keys() if not one.endswith("UNSPECIFIED")]  # noqa: SIM118 (protobuf's enum)


@pytest.fixture(scope="module")
def js(tmp_path_factory: pytest.TempPathFactory) -> Js:
    node = found_node()
    if node is None:
        pytest.skip("node is missing: make install-dev")
    return deployment_modules(node, tmp_path_factory.mktemp("deployments-js"))


def test_a_model_with_a_rollout_and_one_with_revisions_only_are_a_row_each(js: Js) -> None:
    rollouts = [
        {
            "rollout": {
                "model": "m", "stable_revision": "f16", "candidate_revision": "q8", "weight_permille": 50,
                "state": "ROLLOUT_STATE_RUNNING", "events": [{"message": "one"}, {"message": "two"}],
            },
            "workers": {"f16": 2},
        }
    ]  # fmt: skip
    revisions = [
        {"revision": {"model": "m", "revision": "f16"}, "workers": 2}, {"revision": {"model": "m", "revision": "q8"}},
        {"revision": {"model": "a", "revision": "v1"}},
    ]  # fmt: skip
    first, second = js("return data.models(input.rollouts, input.revisions);", locals_of(rollouts, revisions))
    assert first == {
        "model": "a", "stable": "", "candidate": "", "weight": 0, "state": "", "workers": {}, "revisions": 1,
        "last": None,
    }  # fmt: skip
    assert (second["model"], second["stable"], second["candidate"], second["weight"]) == ("m", "f16", "q8", 50)
    assert (second["state"], second["workers"], second["revisions"]) == ("running", {"f16": 2}, 2)
    assert second["last"] == {"message": "two"}


def locals_of(rollouts: list[Any], revisions: list[Any]) -> dict[str, Any]:
    return {"rollouts": rollouts, "revisions": revisions}


@FEW
@given(
    st.lists(
        st.tuples(
            st.sampled_from(STATES), st.lists(st.integers(1, 999), max_size=4, unique=True), st.integers(0, 5),
            st.booleans(),
        ),
        min_size=40, max_size=40,
    )
)  # fmt: skip
def test_the_steps_are_all_there_and_at_most_one_is_under_way(
    js: Js, cases: list[tuple[str, list[int], int, bool]]
) -> None:
    asked = []
    for state, steps, at, under in cases:
        rising = [*sorted(steps), 1000]
        weight = [0, *rising][min(at, len(rising))]
        record: dict[str, Any] = {"state": state, "step_permille": rising, "weight_permille": weight}
        if under:
            record["candidate_revision"] = "q8"
        asked.append(record)
    for record, shown in zip(asked, js("return input.map((one) => data.steps(one));", asked), strict=True):
        assert [one["permille"] for one in shown] == record["step_permille"]
        now = [one["permille"] for one in shown if one["state"] == "now"]
        assert len(now) <= 1
        if record["state"] == "ROLLOUT_STATE_PROMOTED":
            assert {one["state"] for one in shown} == {"done"}
        elif "candidate_revision" in record and record["weight_permille"]:
            assert now == [record["weight_permille"]]
            for one in shown:
                assert (one["state"] == "done") == (one["permille"] < record["weight_permille"])
        else:
            assert now == []


def test_a_rollout_that_was_taken_back_says_how_far_it_had_come(js: Js) -> None:
    record = {
        "state": "ROLLOUT_STATE_ROLLED_BACK", "step_permille": [50, 250, 1000],
        "events": [{"action": "rolled_back", "weight_permille": 250}, {"action": "pinned"}],
    }  # fmt: skip
    assert [one["state"] for one in js("return data.steps(input);", record)] == ["done", "left", "next"]


def test_figures_are_in_the_unit_of_what_they_are(js: Js) -> None:
    bad, open_ = RolloutVerdict.ROLLOUT_VERDICT_BAD, RolloutVerdict.ROLLOUT_VERDICT_OPEN
    figures = [
        RolloutFigure(
            name="ttft", candidate=0.25, stable=0.1, candidate_samples=1200, stable_samples=40, p_value=2e-7,
            limit=0.125, verdict=bad,
        ),
        RolloutFigure(name="error_rate", candidate=0.0, stable=0.0, p_value=0.4321, limit=0.01, verdict=open_),
        RolloutFigure(name="made_later"),
    ]  # fmt: skip
    wire = [MessageToDict(one, preserving_proto_field_name=True) for one in figures]
    slow, errors, unknown = js("return data.figureRows(input);", wire)
    assert (slow["candidate"], slow["stable"], slow["allowed"]) == (f"250{THIN}ms", f"100{THIN}ms", f"125{THIN}ms")
    assert (slow["p"], slow["samples"], slow["verdict"], slow["tone"]) == ("2.0e-7", "1,200 / 40", "bad", "bad")
    assert (errors["candidate"], errors["p"]) == (f"0{THIN}%", "0.43")
    assert (errors["allowed"], errors["verdict"]) == (f"1.0{THIN}%", "open")
    assert (unknown["label"], unknown["candidate"], unknown["samples"]) == ("made_later", "", "0 / 0")


def test_history_begins_with_the_newest_and_says_who_it_was(js: Js) -> None:
    made = RolloutRecord(model="m")
    made.events.add(action="started", reason="operator", actor_key_id="key-1", revision="q8")
    made.events.add(action="rolled_back", reason="ttft", weight_permille=250, figures=[RolloutFigure(name="ttft")])
    back, start = js("return data.events(input);", MessageToDict(made, preserving_proto_field_name=True))
    assert (back["action"], back["tone"], back["by"], back["weight"]) == ("rolled back", "bad", "by rule", f"25{THIN}%")
    assert [one["name"] for one in back["figures"]] == ["ttft"]
    assert (start["by"], start["revision"], start["weight"], start["figures"]) == ("key-1", "q8", "", [])


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({}, []),
        ({"state": "ROLLOUT_STATE_PROMOTED", "stable_revision": "a"}, []),
        ({"state": "ROLLOUT_STATE_PROMOTED", "previous_revision": "a"}, ["return"]),
        ({"previous_revision": "a", "keep_previous": True}, ["return", "let_go"]),
        ({"state": "ROLLOUT_STATE_WARMING", "candidate_revision": "b"}, ["promote", "roll_back"]),
        ({"state": "ROLLOUT_STATE_RUNNING", "candidate_revision": "b"}, ["promote", "pause", "roll_back"]),
        ({"state": "ROLLOUT_STATE_PAUSED", "candidate_revision": "b"}, ["promote", "resume", "roll_back"]),
    ],
)
def test_only_what_can_be_done_is_offered(js: Js, record: dict[str, Any], wanted: list[str]) -> None:
    offered = js("return data.moves(input);", record)
    assert [one["move"] for one in offered] == wanted
    for one in offered:
        assert f"ROLLOUT_MOVE_{one['move'].upper()}" in RolloutMove.keys()  # noqa: SIM118 (protobuf's enum)


def test_what_failed_or_is_retired_serves_nothing_and_what_serves_is_not_deployed(js: Js) -> None:
    revisions = [
        {"revision": {"revision": name, **more}}
        for name, more in (
            ("stable", {"stage": "REVISION_STAGE_STABLE"}), ("new", {"stage": "REVISION_STAGE_DRAFT"}),
            ("good", {"validation": {"passed": True}}), ("failed", {"validation": {"reference": "stable"}}),
            ("gone", {"stage": "REVISION_STAGE_RETIRED"}),
        )
    ]  # fmt: skip
    assert js("return data.servable(input);", revisions) == ["stable", "new", "good"]
    body = "return data.deployable(input, {stable_revision: 'stable', candidate_revision: 'good'});"
    assert js(body, revisions) == ["new"]
    order = js("return data.revisionRows(input).map((one) => one.revision.revision);", revisions)
    assert order == ["stable", "new", "gone", "good", "failed"]


def test_sizes_and_bounds(js: Js) -> None:
    body = "return [data.sizeOf({}), data.sizeOf({artifacts: [{size_bytes: '12'}, {}, {size_bytes: '30'}]})];"
    assert js(body) == [None, 42]
    validation = {
        "figures": [
            {"name": "kl_divergence", "value": 0.0123456, "unit": "nats", "at_most": 0.05, "passed": True},
            {"name": "size_ratio", "unit": "1", "detail": "files"},
        ]
    }
    kl, size = js("return data.validationRows(input);", validation)
    assert kl == {
        "name": "kl divergence", "value": "0.01235 nats", "bounds": "≤ 0.05", "passed": True, "detail": "",
    }  # fmt: skip
    assert (size["value"], size["bounds"], size["detail"]) == ("0", "", "files")


@FEW
@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["v1", "v2"])),
            st.sampled_from("abcd"),
            st.sampled_from(["", "v3"]),
        ),
        min_size=40, max_size=40,
    )
)  # fmt: skip
def test_a_pin_changes_no_other_tenants(js: Js, cases: list[tuple[dict[str, str], str, str]]) -> None:
    asked = [([{"tenant_id": k, "revision": v} for k, v in pins.items()], name, to) for pins, name, to in cases]
    made = js("return input.map(([pins, name, to]) => data.pinsWith(pins, name, to));", asked)
    for (pins, name, to), shown in zip(cases, made, strict=True):
        wanted = {key: value for key, value in pins.items() if key != name} | ({name: to} if to else {})
        assert {one["tenant_id"]: one["revision"] for one in shown} == wanted
        assert len(shown) == len(wanted)


# --- forms ------------------------------------------------------------------------------------------------------------


def test_a_deploy_form_is_a_request_that_the_api_reads(js: Js) -> None:
    said = {
        "model": "m", "revision": "q8", "strategy": "canary", "steps": "5, 25%;100", "step_time": "90",
        "min_requests": " ", "max_slowdown": "30", "max_errors": "0.5", "min_agreement": "0",
    }  # fmt: skip
    body = js("return ask.startOf(input);", said)
    assert body == {
        "model": "m", "revision": "q8", "strategy": "canary", "step_permille": [50, 250, 1000],
        "policy": {"step_time": 90, "max_slowdown": 0.3, "max_error_increase": 0.005, "min_agreement": 0},
    }  # fmt: skip
    body["policy"]["step_time"] = "90s"
    body["strategy"] = RolloutStrategy.Name(RolloutStrategy.ROLLOUT_STRATEGY_CANARY)
    ParseDict(body, StartRolloutRequest())
    at_once = js("return ask.startOf({...input, strategy: 'blue_green'});", said)
    assert at_once == {
        "model": "m", "revision": "q8", "strategy": "blue_green", "policy": {"min_agreement": 0},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("field", "text"),
    [("steps", "5, much"), ("steps", "0, 100"), ("steps", "101"), ("step_time", "soon"), ("max_slowdown", "-1")],
)
def test_what_is_no_number_is_told(js: Js, field: str, text: str) -> None:
    said = {"model": "m", "revision": "q8", "strategy": "canary", field: text}
    told = js("try { ask.startOf(input); return ''; } catch (error) { return error.message; }", said)
    assert text in told


@pytest.mark.parametrize(("share", "wanted"), [("5", 50), ("0.1", 1), ("100 %", 1000), ("0", None), ("101", None)])
def test_a_shadow(js: Js, share: str, wanted: int | None) -> None:
    body = "try { return ask.shadowOf('m', 'q8', input); } catch (error) { return error.message; }"
    made = js(body, share)
    if wanted is None:
        assert "0.1 to 100" in made
    else:
        assert made == {"model": "m", "shadow": {"revision": "q8", "permille": wanted}}
    assert js("return ask.shadowOf('m', '', '');") == {"model": "m"}

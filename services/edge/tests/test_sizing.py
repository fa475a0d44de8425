"""Sizing over HTTP: for operators and tenants' administrators, true to its document, and wrong questions named."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from inferbus_edge.core import openapi
from inferbus_edge.core.openapi_schema import REF
from inferbus_edge.core.openapi_sizing import OPERATIONS
from inferbus_edge.core.sizing_request import MAX_BYTES
from inferbus_sizing import GPUS, models
from jsonschema import Draft202012Validator

AT = "/inferbus/v1/sizing"
SEVENTY = {"model": "llama-3.1-70b", "gpu": "h100", "precision": "fp8"}


@pytest_asyncio.fixture(scope="module")
async def operator(edge: Any, rig: Any) -> Any:
    async with rig.session(edge, rig.ADMIN_KEY) as one:
        yield one


@pytest_asyncio.fixture(scope="module")
async def tenant(operator: Any, edge: Any, rig: Any) -> Any:
    async with operator.post("/inferbus/v1/tenants", json={"tenant_id": "sizers"}) as response:
        assert response.status in (201, 409)
    async with operator.post("/inferbus/v1/keys", json={"tenant_id": "sizers", "scopes": ["tenant_admin"]}) as response:
        key = (await response.json())["secret"]
    async with rig.session(edge, key) as http:
        yield http


async def ask(http: aiohttp.ClientSession, body: Any, status: int = 200) -> Any:
    async with http.post(AT, data=body if isinstance(body, bytes) else json.dumps(body).encode()) as response:
        answer = await response.json()
        assert response.status == status, answer
        return answer


def check(name: str, value: Any) -> None:
    components = {"schemas": openapi.schemas()}
    validator = Draft202012Validator({"$ref": f"{REF}{name}", "components": components})
    assert [f"{one.json_path}: {one.message}" for one in validator.iter_errors(value)] == []


async def test_what_can_be_named(operator: Any, tenant: Any) -> None:
    for http in (operator, tenant):
        async with http.get(AT) as response:
            assert response.status == 200
            found = await response.json()
    check("SizingCatalogue", found)
    assert {one["name"] for one in found["models"]} == set(models())


async def test_a_plan_has_its_figures_with_formulas_and_sources(operator: Any) -> None:
    prices = {"api_price_in": 0.6, "api_price_out": 0.6}
    answer = await ask(operator, {**SEVENTY, "concurrency": 64, "ttft_seconds": 0.5, "itl_seconds": 0.05, **prices})
    check("Sizing", answer)
    (plan,) = answer["plans"]
    assert plan["parallel"] == "TP4"
    assert plan["figures"]["weights"]["value"] == pytest.approx(72.7e9, rel=0.01)
    assert "config.json" in plan["figures"]["weights"]["source"]
    assert plan["crossover"]["requests"] == plan["figures"]["crossover"]["value"]


async def test_a_tenant_compares_all_gpus_and_sees_what_does_not_fit(tenant: Any) -> None:
    answer = await ask(tenant, {"model": "llama-3.1-405b", "gpus_per_replica": 1})
    check("Sizing", answer)
    assert [plan["gpu"] for plan in answer["plans"]] == list(GPUS)
    assert not any(plan["fits"] for plan in answer["plans"])
    assert "What would fit" in answer["plans"][0]["reason"]


async def test_the_documents_example_is_answered(operator: Any) -> None:
    for operation in OPERATIONS:
        if operation.example is not None:
            check("SizingRequest", operation.example)
            check("Sizing", await ask(operator, operation.example))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "model"),
        ({"model": "gpt-9"}, "model"),
        ({**SEVENTY, "context": 0}, "context"),
        ({**SEVENTY, "colour": "red"}, "colour"),
        ({**SEVENTY, "itl_seconds": -1}, "itl_seconds"),
        ({"config": {"hidden_size": 1}}, "config.num_hidden_layers"),
        (b"[]", None),
        (b"{", None),
    ],
)
async def test_a_wrong_question_is_a_400_that_names_its_field(operator: Any, body: Any, param: str | None) -> None:
    error = (await ask(operator, body, 400))["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


async def test_a_body_has_a_bound(operator: Any) -> None:
    error = (await ask(operator, {"config": {"padding": "x" * MAX_BYTES}}, 413))["error"]
    assert error["code"] == "body_too_large"


async def test_it_takes_an_administrators_key(http: aiohttp.ClientSession) -> None:
    for method in ("GET", "POST"):
        async with http.request(method, AT, json=SEVENTY) as response:
            assert response.status == 403


async def test_a_tenant_has_as_many_at_once_as_reports(tenant: Any) -> None:
    slow = json.dumps({"model": "deepseek-r1", "concurrency": 1_000_000, "itl_seconds": 0.03, "ttft_seconds": 1})

    async def status() -> int:
        async with tenant.post(AT, data=slow) as response:
            await response.read()
            return response.status

    found = await asyncio.gather(*(status() for _ in range(24)))
    assert set(found) == {200, 429}

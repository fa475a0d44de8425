"""Questions and answers as JSON."""

import json
from typing import Any

import pytest
from inferbus_sizing import GPUS, SizingError, models
from inferbus_sizing.objects import answer_of, asked_of, catalogue


def test_a_named_gpu_is_planned_and_all_are_compared_without_one() -> None:
    one = answer_of(asked_of({"model": "Llama-3.1-8B", "gpu": "L4"}))
    assert [plan["gpu"] for plan in one["plans"]] == ["l4"]
    everything = answer_of(asked_of({"model": "llama-3.1-8b", "precision": "fp8"}))
    assert [plan["gpu"] for plan in everything["plans"]] == list(GPUS)
    assert everything["wanted"]["context"] == 8192
    json.dumps(everything, allow_nan=False)


def test_what_does_not_fit_is_an_answer() -> None:
    (plan,) = answer_of(asked_of({"model": "llama-3.1-405b", "gpu": "l4", "gpus_per_replica": 1}))["plans"]
    assert plan["fits"] is False
    assert "What would fit" in plan["reason"]


def test_a_config_is_as_good_as_a_name() -> None:
    config = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
              "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
              "max_position_embeddings": 131072}  # fmt: skip
    own = answer_of(asked_of({"config": config, "gpu": "h100"}))["plans"]
    known = answer_of(asked_of({"model": "llama-3.1-8b", "gpu": "h100"}))["plans"]
    assert own == known


def test_the_catalogue_has_all_that_can_be_named() -> None:
    found = catalogue()
    assert {one["name"] for one in found["models"]} == set(models())
    for model in found["models"]:
        asked_of({"model": model["name"], "precision": model["precision"], "context": 1500})
    json.dumps(found)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "model"),
        ({"model": "llama-3.1-8b", "config": {}}, "model"),
        ({"model": 7}, "model"),
        ({"model": "gpt-9"}, "model"),
        ({"config": []}, "config"),
        ({"config": {}}, "config.num_hidden_layers"),
        ({"config": {str(n): n for n in range(1000)}}, "config"),
        ({"model": "llama-3.1-8b", "colour": 1}, "colour"),
        ({"model": "llama-3.1-8b", "gpu": 1}, "gpu"),
        ({"model": "llama-3.1-8b", "context": "many"}, "context"),
        ({"model": "llama-3.1-8b", "context": 1.5}, "context"),
        ({"model": "llama-3.1-8b", "concurrency": True}, "concurrency"),
        ({"model": "llama-3.1-8b", "ttft_seconds": "1"}, "ttft_seconds"),
        ({"model": "llama-3.1-8b", "context": 1 << 70}, "context"),
        ({"model": "llama-3.1-8b", "dollars_per_hour": 1}, "dollars_per_hour"),
    ],
)
def test_a_wrong_question_names_its_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(SizingError) as raised:
        asked_of(body)
    assert raised.value.param == param

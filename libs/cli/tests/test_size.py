"""``inferbus size``: without a stack, with the simulator, and beside what a real stack has measured."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from click.testing import CliRunner, Result
from inferbus_cli.__main__ import cli
from inferbus_sizing import GPUS, models

from .conftest import Launch, RunningStack, until

SEVENTY = ("size", "llama-3.1-70b", "--precision", "fp8", "--gpu", "h100")


def run(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(cli, arguments, env={"INFERBUS_HOME": "/nowhere"})
    assert done.exit_code == code, done.output
    return done


def test_one_gpu_is_shown_with_all_figures() -> None:
    prices = ("--api-price-in", "0.6", "--api-price-out", "0.6", "--requests-per-month", "2e6")
    text = run(*SEVENTY, "--concurrency", "64", "--ttft", "500ms", "--itl", "50ms", *prices).stdout
    for words in ("4 x H100 SXM 80 GB", "72.7 GB", "163.8 kB", "TTFT, mean", "power with hosts", "crossover"):
        assert words in text


def test_explain_gives_each_figure_its_formula_and_source() -> None:
    text = run(*SEVENTY, "--explain").stdout
    assert "80 layers x 2 x 8 KV heads x 128 x 1 bytes (fp8)" in text
    assert "NVIDIA H100/H200 data sheets" in text
    assert text.count("\n  = ") == text.count("\n  from ") > 20


def test_without_a_gpu_all_are_compared() -> None:
    text = run("size", "deepseek-r1").stdout
    for gpu in GPUS.values():
        assert gpu.title in text


def test_a_config_of_ones_own(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    sizes = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "intermediate_size": 8192}
    config.write_text(json.dumps({"model_type": "llama", "vocab_size": 32000, **sizes}))
    (plan,) = json.loads(run("size", "--config", str(config), "--gpu", "l4", "--json").stdout)["plans"]
    assert plan["fits"]
    config.write_text("{")
    assert "is no JSON" in run("size", "--config", str(config), code=2).output
    config.write_text("{}")
    assert "num_hidden_layers" in run("size", "--config", str(config), code=2).output


def test_what_is_built_in_is_listed() -> None:
    text = run("size", "--list").stdout
    for name in (*models(), *GPUS, "nvfp4"):
        assert name in text
    assert {one["name"] for one in json.loads(run("size", "--list", "--json").stdout)["gpus"]} == set(GPUS)


def test_what_does_not_fit_says_what_would() -> None:
    refused = run("size", "llama-3.1-405b", "--gpu", "l4", "--gpus", "4", code=2)
    assert "What would fit: " in refused.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("llama-3.1-8b", "--context", "0"), "--context"),
        (("llama-3.1-8b", "--input", "9000"), "--input"),
        (("llama-3.1-8b", "--kv", "fp3"), "--kv"),
        (("llama-3.1-8b", "--gpu", "abacus"), "--gpu"),
        (("llama-3.1-8b", "--ttft", "soon"), "--ttft"),
        (("gpt-9",), "--list shows"),
        ((), "Name a built-in"),
        (("llama-3.1-8b", "--simulate"), "need --gpu"),
    ],
)
def test_a_wrong_wish_is_named_by_its_option(options: tuple[str, ...], said: str) -> None:
    assert said in run("size", *options, code=2).output


def test_the_simulator_runs_over_the_plan() -> None:
    answer: dict[str, Any] = json.loads(run(*SEVENTY, "--concurrency", "64", "--simulate", "--json").stdout)
    found, (plan,) = answer["simulated"], answer["plans"]
    assert found["requests"] > 1000
    assert found["failed"] == 0
    # Its steps are the plan's: with fewer under way than the plan has them at full load they are no longer than those.
    assert found["itl"][0] <= plan["figures"]["itl"]["value"] * 1.05
    assert found["itl"][0] >= plan["figures"]["decode_step"]["value"] * 0.5
    text = run(*SEVENTY, "--concurrency", "64", "--simulate", "--load", "0.3").stdout
    assert "30% of what the plan can take" in text


def test_beside_what_a_stack_has_measured(stack: RunningStack) -> None:
    content = stack.content
    plain = ("size", "llama-3.2-1b", "--gpu", "l4", "--since", "1d")
    assert "has measured nothing of nobody" in stack.run(*plain, "--measured", "nobody").stdout
    with openai.OpenAI(base_url=content["base_url"], api_key=content["api_key"], max_retries=0) as client:
        for _ in range(3):
            client.chat.completions.create(
                model="synthetic", messages=[{"role": "user", "content": "size me"}], max_tokens=16
            )  # fmt: skip

    def measured() -> dict[str, Any]:
        return stack.json(*plain, "--measured", "synthetic").get("measured", {})

    until(lambda: measured().get("requests", 0) >= 3 and measured()["in_flight"] > 0, 30)
    found = measured()
    assert found["ttft"][0] > 0
    assert 0.001 < found["itl"][0] < 1  # the stack's engine takes 2 ms a step
    assert found["output_tokens"] > 1
    text = stack.run(*plain, "--measured", "synthetic").stdout
    assert "Measured of synthetic" in text
    assert "measured / worked out" in text
    assert f"{found['itl'][0] * 1000:.1f} ms" in text


def test_a_stack_that_is_as_the_plan_says_measures_what_the_plan_says(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan's timing, followed by a real stack's engine, and measured by it, is the plan again."""
    asked = ("size", "llama-3.1-8b", "--precision", "fp8", "--gpu", "l4", "--gpus", "1")
    lengths = ("--concurrency", "8", "--input", "60", "--output", "100")
    (plan,) = json.loads(run(*asked, *lengths, "--json").stdout)["plans"]
    timing = plan["timing"]
    settings = {
        "ITL": f"{timing['step_seconds'] * 1e6:.0f}us",
        "STEP_PER_SEQUENCE": f"{timing['step_seconds_per_sequence'] * 1e6:.0f}us",
        "PREFILL_RATE": f"{timing['prefill_tokens_per_second']:.0f}",
        "KV_BLOCKS": str(timing["kv_blocks"]),
        "KV_BLOCK_TOKENS": str(timing["kv_block_tokens"]),
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"INFERBUS_WORKER_SYNTHETIC__{name}", value)
    stack = launch(tmp_path / "planned")
    content = stack.content

    def chat(number: int) -> None:
        with openai.OpenAI(base_url=content["base_url"], api_key=content["api_key"], max_retries=0) as client:
            said = f"{number} " + "word " * 59
            client.chat.completions.create(
                model="synthetic", messages=[{"role": "user", "content": said}], max_tokens=100
            )  # fmt: skip

    with ThreadPoolExecutor(8) as eight:
        list(eight.map(chat, range(16)))
    until(lambda: _load(stack, *asked).get("requests", 0) >= 16, 30)
    found = _load(stack, *asked)
    assert found["output_tokens"] == pytest.approx(100, rel=0.05)
    # Timers of a busy machine are late, never early.
    assert 0.9 < found["itl"][0] / plan["figures"]["itl"]["value"] < 1.5
    # That engine reads prompts beside its steps, so that a first token waits for one step and not for one and a half.
    assert 0.4 < found["ttft"][0] / plan["figures"]["ttft"]["value"] < 4
    assert "measured / worked out" in stack.run(*asked, "--measured", "synthetic").stdout


def _load(stack: RunningStack, *asked: str) -> dict[str, Any]:
    found: dict[str, Any] = stack.json(*asked, "--measured", "synthetic").get("measured", {})
    return found

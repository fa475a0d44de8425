import asyncio
import urllib.request

from inferbus_runtime import metrics
from inferbus_runtime.telemetry import metrics_text, serve_metrics
from prometheus_client.parser import text_string_to_metric_families

GEN_AI = {
    "gen_ai_server_time_to_first_token_seconds",
    "gen_ai_server_time_per_output_token_seconds",
    "gen_ai_server_request_duration_seconds",
    "gen_ai_client_token_usage",
}


def test_names_labels_and_buckets() -> None:
    for histogram in (metrics.TIME_TO_FIRST_TOKEN, metrics.TIME_PER_OUTPUT_TOKEN, metrics.REQUEST_DURATION):
        histogram.labels(gen_ai_request_model="smollm2", error_type="").observe(0.03)
    metrics.TOKEN_USAGE.labels("smollm2", "output").observe(100)
    text, content_type = metrics_text()
    assert content_type.startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    assert families.keys() >= GEN_AI
    ours = {name for name in families if not name.startswith(("python_", "process_"))}
    assert all(name in GEN_AI or name.startswith("inferbus_") for name in ours)
    assert not [name for name in families if name.endswith("_created")]
    bounds = [
        float(sample.labels["le"])
        for sample in families["gen_ai_client_token_usage"].samples
        if sample.name.endswith("_bucket")
    ]
    assert bounds[:3] == [1, 4, 16]
    assert bounds[-2] == 67108864


async def test_serves_over_http_and_stops() -> None:
    metrics.FRAMES_PUBLISHED.inc(0)

    def scrape(address: str) -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
            return str(answer.read().decode())

    async with serve_metrics("127.0.0.1:0") as address:
        assert "inferbus_frames_published_total" in await asyncio.to_thread(scrape, address)
    try:
        await asyncio.to_thread(scrape, address)
    except OSError:
        return
    raise AssertionError("still serving")

"""``inferbus batch`` without a stack: what is asked again, what is shown, and what is said before anything is sent."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from inferbus_cli.__main__ import cli
from inferbus_cli.batch_progress import Rate, described
from inferbus_cli.batches import pause_after
from inferbus_cli.edge import Misnamed, Refused, Unreachable

NOBODY = ("--url", "http://127.0.0.1:9", "--key", "k")


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_what_may_pass_is_asked_again(status: int) -> None:
    assert pause_after(Refused("away", status=status), 1) == pause_after(Unreachable("cut"), 1) == 0.5
    assert pause_after(Refused("full", 7.0, 429), 1) == 7.0


@pytest.mark.parametrize("error", [Refused("no", status=404), Refused("no", status=501), Misnamed("not a URL")])
def test_what_stays_as_it_is_is_not_asked_again(error: Refused | Unreachable) -> None:
    assert pause_after(error, 1) is None


@given(st.integers(1, 10_000))
def test_pauses_grow_to_a_bound(tries: int) -> None:
    now, later = pause_after(Unreachable("cut"), tries), pause_after(Unreachable("cut"), tries + 1)
    assert now is not None
    assert later is not None
    assert 0.5 <= now <= later <= 15.0


@given(st.floats(0.1, 1000.0), st.integers(2, 200))
def test_the_rate_is_that_of_the_last_half_minute(per_second: float, seconds: int) -> None:
    rate = Rate()
    said = [rate.add(1000.0 + at, int(per_second * at)) for at in range(seconds)]
    assert said[0] == 0.0
    assert said[-1] == pytest.approx(per_second, abs=1.0 / min(seconds - 1, 29))


def test_how_far_it_is_is_one_line() -> None:
    batch = {"status": "in_progress", "request_counts": {"total": 100, "completed": 39, "failed": 1}}
    assert described(batch, 12.5) == "in_progress 40 of 100 lines (1 failed), 12.5 lines/s, 5 s left"
    assert described(batch, 0.0) == "in_progress 40 of 100 lines (1 failed)"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--output", "no/such/out"), "there is no folder 'no/such'"),
        (("--output", "same", "--errors", "./same"), "are one file"),
        (("--output", "."), "is a directory"),
        (("--metadata", "team"), "NAME=VALUE"),
    ],
)
def test_a_bad_option_is_told_before_anything_is_sent(
    options: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"url": "/v1/embeddings"}\n')
    done = CliRunner().invoke(cli, ["batch", "submit", "in.jsonl", *options, *NOBODY])
    assert (done.exit_code, said in done.output) == (2, True), done.output


@pytest.mark.parametrize("first", [b"", b"{no json", b"[1]", b'{"url": 7}', b"\xff\n", b"[" * 200_000])
def test_a_first_line_that_names_no_url_asks_for_the_endpoint(first: bytes, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(first)
    done = CliRunner().invoke(cli, ["batch", "validate", str(file), *NOBODY])
    assert (done.exit_code, "--endpoint" in done.output) == (2, True), done.output


@pytest.mark.parametrize("command", [("status", "batch_1"), ("fetch", "batch_1"), ("list",), ("cancel", "batch_1")])
def test_nobody_there_is_told_at_once(command: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, ["batch", *command, *NOBODY])
    assert (done.exit_code, "nobody answers" in done.output) == (2, True), done.output

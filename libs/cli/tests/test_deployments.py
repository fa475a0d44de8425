"""``inferbus deployments`` against a real stack. Nobody serves these models, so nothing of the stack changes."""

from libs.cli.tests.conftest import RunningStack


def test_a_deployment_is_set_piece_by_piece_shown_and_deleted(stack: RunningStack) -> None:
    made = stack.run("deployments", "set", "org/large", "--max", "4", "--ttft-target", "800ms", "--fallback", "small")
    assert made.stdout == "org/large: replicas 0 to 4.\n"
    stack.run("deployments", "set", "org/large", "--min", "1", "--gpus", "2", "--idle-time", "90s")
    shown = stack.json("deployments", "show", "org/large")["deployment"]
    assert shown["ttft_target"] == "0.800s"
    assert (shown["min_replicas"], shown["max_replicas"], shown["gpus_per_replica"]) == (1, 4, 2)
    assert (shown["fallbacks"], shown["idle_time"]) == (["small"], "90s")

    text = stack.run("deployments", "show", "org/large").stdout
    assert "replicas: 1 to 4, 2 GPU each" in text
    assert "ttft target: 800.0 ms" in text
    listed = stack.run("deployments", "list").stdout
    assert "org/large" in listed
    assert "800.0 ms" in listed

    stack.run("deployments", "set", "org/large", "--ttft-target", "none", "--no-fallbacks", "--max", "0", "--min", "0")
    shown = stack.json("deployments", "show", "org/large")["deployment"]
    assert not {"ttft_target", "fallbacks", "max_replicas"} & shown.keys()
    stack.run("deployments", "delete", "org/large")
    gone = stack.run("deployments", "show", "org/large", check=False)
    assert gone.exit_code == 2
    assert "deployment_not_found" in gone.output


def test_what_the_scheduler_refuses_is_told(stack: RunningStack) -> None:
    refused = stack.run("deployments", "set", "org/other", "--min", "3", "--max", "2", check=False)
    assert refused.exit_code == 2
    assert "min_replicas" in refused.output
    twice = stack.run("deployments", "set", "org/other", "--fallback", "a", "--no-fallbacks", check=False)
    assert twice.exit_code == 2
    assert "--no-fallbacks goes without --fallback" in twice.output

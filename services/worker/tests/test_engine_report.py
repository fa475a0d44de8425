"""What a worker tells of its engine, and that an engine which cannot say it keeps nobody from their work."""

import logging
from typing import Any

import pytest
from inferbus_worker.engine import EngineStatistics
from inferbus_worker.engine_report import EngineReport
from prometheus_client import REGISTRY


class Says:
    """The one method of an engine that is asked."""

    def __init__(self, told: EngineStatistics | Exception) -> None:
        self.told = told

    def statistics(self) -> EngineStatistics:
        if isinstance(self.told, Exception):
            raise self.told
        return self.told


def report_of(engine: Any, name: str) -> EngineReport:
    return EngineReport(engine, name)


def gauge(name: str, engine: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"inferbus_engine_{name}", {"engine": engine, **labels})


def test_what_an_engine_does_not_say_is_absent() -> None:
    engine = Says(EngineStatistics(3, 1, kv_blocks_total=100, kv_blocks_used=0))
    report = report_of(engine, "absent")
    told = report.current()
    assert told is not None
    assert (told.running, told.waiting, told.kv_blocks_total) == (3, 1, 100)
    assert told.HasField("kv_blocks_used"), "zero is said"
    assert not told.HasField("engine_running")
    assert (gauge("kv_blocks", "absent"), gauge("kv_blocks_used", "absent")) == (100, 0)
    assert gauge("requests", "absent", state="running") is None


def test_what_an_engine_no_longer_says_has_no_series_any_more() -> None:
    engine = Says(EngineStatistics(3, 1, engine_running=2, kv_blocks_used=7))
    report = report_of(engine, "leaves")
    report.current()
    assert gauge("requests", "leaves", state="running") == 2
    engine.told = EngineStatistics(3, 1, kv_blocks_used=8)
    report.current()
    assert gauge("requests", "leaves", state="running") is None
    assert gauge("kv_blocks_used", "leaves") == 8


def test_statistics_that_fail_are_not_known_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    engine = Says(EngineStatistics(1, 0, kv_blocks_used=7))
    report = report_of(engine, "fails")
    report.current()
    engine.told = RuntimeError("a broken table")
    with caplog.at_level(logging.ERROR):
        assert [report.current(), report.current()] == [None, None]
    assert len([record for record in caplog.records if "statistics" in record.message]) == 1
    assert gauge("kv_blocks_used", "fails") is None
    engine.told = EngineStatistics(1, 0)
    assert report.current() is not None

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_runtime.config import ConfigError, Section, ServiceConfig, Variable, describe, load
from inferbus_runtime.durations import format_duration, parse_duration
from inferbus_runtime.tls import TlsFiles
from pydantic import Field, SecretStr

PREFIX = "INFERBUS_ROOM_"


class Pace(Section):
    itl: timedelta = timedelta(milliseconds=20)
    """Time between tokens."""
    jitter: float = 0.0
    """Share of it that varies."""


class Place(Section):
    host: str
    """Whom to call."""


class Config(ServiceConfig):
    http_port: int = Field(default=8080, ge=0, le=65535)
    """Port; 0 takes
    a free one."""
    tags: tuple[str, ...] = ()
    """Names; more are allowed."""
    waits: tuple[timedelta, ...] = (timedelta(seconds=1),)
    """Waits between tries; the last one repeats."""
    pace: Pace = Pace()
    """Nested."""
    place: Place | None = None
    """Nested, and may be left out."""
    password: SecretStr
    """Of the store."""


GIVEN = {"INFERBUS_ROOM_NAME": "room-0", "INFERBUS_ROOM_PASSWORD": "hunter2hunter2"}


def read(**more: str) -> Config:
    return load(Config, PREFIX, {**GIVEN, "HOME": "/nowhere", **{PREFIX + name: value for name, value in more.items()}})


def faults(**more: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(**more)
    return caught.value.faults


def test_reads_all_kinds_of_values() -> None:
    config = read(
        HTTP_PORT="0",
        TAGS="a, b,,c",
        WAITS="100ms,1m",
        PACE__ITL="1.5s",
        READY_FILE="run/ready.json",
        DRAIN_TIMEOUT="PT2M",
        DIE_WITH_PARENT="true",
        NATS_SEED="SUAB",
    )
    assert config.http_port == 0
    assert config.tags == ("a", "b", "c")
    assert config.waits == (timedelta(milliseconds=100), timedelta(minutes=1))
    assert config.pace == Pace(itl=timedelta(seconds=1.5))
    assert config.ready_file == Path("run/ready.json")
    assert config.drain_timeout == timedelta(minutes=2)
    assert config.die_with_parent is True
    assert config.nats_seed is not None
    assert config.nats_seed.get_secret_value() == "SUAB"


def test_defaults_stand_and_empty_means_unset() -> None:
    config = read(HTTP_PORT="", OTLP_ENDPOINT="", DRAIN_TIMEOUT="0s")
    assert config.http_port == 8080
    assert config.otlp_endpoint is None
    assert config.drain_timeout == timedelta(0)
    assert config.nats_url == "nats://127.0.0.1:4222"


def test_all_faults_are_told_together() -> None:
    found = faults(
        HTTP_PROT="1",
        HTTP_PORT="70000",
        DRAIN_TIMEOUT="soon",
        PACE__JITTER="much",
        PACE__SPEED="1",
        LOG_LEVEL="loud",
        WAITS="1s,later",
        NAME="",
        OTLP_ENDPOINT="collector:4317",
    )
    names = "HTTP_PROT HTTP_PORT DRAIN_TIMEOUT PACE__JITTER PACE__SPEED LOG_LEVEL WAITS NAME OTLP_ENDPOINT"
    assert {fault.split(":")[0] for fault in found} == {PREFIX + name for name in names.split(" ")}
    assert "INFERBUS_ROOM_HTTP_PROT: no such variable; did you mean INFERBUS_ROOM_HTTP_PORT?" in found
    assert "INFERBUS_ROOM_NAME: must be set" in found
    assert "INFERBUS_ROOM_DRAIN_TIMEOUT: must be a duration such as 200ms, 1.5s or 5m, or ISO 8601" in found


def test_an_identity_is_whole_or_none() -> None:
    assert read().tls is None
    assert read(TLS_CERT="a.pem", TLS_KEY="a.key", TLS_CA="ca.pem").tls == TlsFiles(
        Path("a.pem"), Path("a.key"), Path("ca.pem")
    )


@given(st.sets(st.sampled_from(["TLS_CERT", "TLS_KEY", "TLS_CA"]), min_size=1, max_size=2))
def test_a_part_of_an_identity_is_a_fault_beside_all_others(given_parts: set[str]) -> None:
    found = faults(HTTP_PORT="70000", **dict.fromkeys(given_parts, "file.pem"))
    assert len(found) == 2
    missing, present = found[0].removeprefix("INFERBUS_ROOM_TLS_CA: set ").split(" too, or leave out ")
    assert set(present.split(" and ")) == given_parts
    assert set(missing.split(" and ")) == {"TLS_CERT", "TLS_KEY", "TLS_CA"} - given_parts
    assert found[1].startswith("INFERBUS_ROOM_HTTP_PORT:")


def test_a_section_itself_is_no_variable() -> None:
    assert faults(PACE="fast")[0].startswith("INFERBUS_ROOM_PACE: no such variable")


def test_secrets_are_masked_everywhere() -> None:
    config = read()
    assert "hunter2" not in f"{config!r} {config} {config.model_dump_json()}"
    assert "hunter2" not in " ".join(faults(RPC_TOKEN="hunter2"))
    assert config.password.get_secret_value() == "hunter2hunter2"


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read().http_port = 1


def test_describe_lists_every_variable_with_its_line() -> None:
    listed = {variable.name: variable for variable in describe(Config, PREFIX)}
    assert listed["INFERBUS_ROOM_HTTP_PORT"] == Variable(
        "INFERBUS_ROOM_HTTP_PORT", "integer", "8080", required=False, secret=False, doc="Port; 0 takes a free one."
    )
    assert listed["INFERBUS_ROOM_PASSWORD"].secret
    assert listed["INFERBUS_ROOM_PASSWORD"].required
    assert not listed["INFERBUS_ROOM_PLACE__HOST"].required, "the section may be left out"
    assert listed["INFERBUS_ROOM_PACE__ITL"].default == "20ms"
    assert listed["INFERBUS_ROOM_WAITS"].type == "list of duration"
    assert listed["INFERBUS_ROOM_WAITS"].default == "1s"
    assert listed["INFERBUS_ROOM_LOG_LEVEL"].type == "debug|info|warning|error"
    assert listed["INFERBUS_ROOM_DIE_WITH_PARENT"].default == "false"
    assert listed["INFERBUS_ROOM_NATS_SEED"].secret
    assert "INFERBUS_ROOM_PACE" not in listed
    assert all(variable.doc for variable in listed.values())


def test_what_describe_says_of_defaults_can_be_set() -> None:
    given = {variable.name: variable.default for variable in describe(Config, PREFIX) if variable.default}
    assert load(Config, PREFIX, {**given, **GIVEN}) == read()


durations = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=400))


@given(durations)
def test_a_duration_survives_its_text(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


@given(st.text(alphabet="0123456789.smhdu -PT", max_size=12))
def test_any_text_is_a_duration_or_none(text: str) -> None:
    duration = parse_duration(text)
    assert duration is None or duration >= timedelta(0)


def test_durations_may_have_parts() -> None:
    assert parse_duration("1h30m") == timedelta(hours=1, minutes=30)
    assert parse_duration("1.5s") == timedelta(seconds=1.5)
    assert parse_duration("15") is None
    assert parse_duration("9" * 400 + "d") is None

"""Artifacts on a real broker: stored by digest, pulled, verified, shared by the workers of a machine."""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inferbus_artifacts.folder import Folder, Wanted
from inferbus_artifacts.opened import opened, uploads
from inferbus_artifacts.settings import ArtifactsS3
from inferbus_artifacts.store import Artifacts
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.objects import CHUNK_BYTES, Objects
from inferbus_bus.publish import Publisher
from inferbus_bus.streams import ensure_streams
from inferbus_contracts.subjects import ARTIFACTS
from inferbus_objects.s3_store import S3Store
from inferbus_objects.store import BusStore
from inferbus_runtime.errors import InferBusError
from inferbus_stack.nats import NatsServer

from services.batch.tests.s3_servers.swift_server import missing, swift

_BOUND = 1 << 40


@pytest.fixture(scope="module")
async def bus(tmp_path_factory) -> AsyncIterator[Bus]:
    async with NatsServer(tmp_path_factory.mktemp("nats")) as server, connect(BusConfig(server.url, "a")) as bus:
        await ensure_streams(bus)
        yield bus


@pytest.fixture
async def artifacts(bus: Bus) -> Artifacts:
    return await opened(bus, None)


class Tearing(BusStore):
    """The same store over a line that breaks after ``after`` bytes, and says from where it is asked."""

    after = 0
    asked: list[int]

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        self.asked = [*getattr(self, "asked", []), offset]
        given = 0
        async for part in super().get(name, offset, length):
            given += len(part)
            if self.after and given > self.after:
                raise ConnectionResetError("the line broke")
            yield part


@pytest.fixture
async def tearing(bus: Bus) -> Tearing:
    publisher = Publisher(bus)
    await publisher.start()
    return Tearing(Objects(bus, publisher, ARTIFACTS))


def file_of(folder: Path, data: bytes, name: str = "model.gguf") -> tuple[Path, Wanted]:
    path = folder / name
    path.write_bytes(data)
    return path, Wanted(name, hashlib.sha256(data).hexdigest(), len(data))


async def stored(artifacts: Artifacts, folder: Path, data: bytes, name: str = "model.gguf") -> Wanted:
    path, wanted = file_of(folder, data, name)
    await artifacts.put(path, wanted.sha256)
    return wanted


async def test_what_is_stored_once_is_not_stored_twice(artifacts: Artifacts, tmp_path: Path) -> None:
    data = os.urandom(3 * CHUNK_BYTES + 7)
    path, wanted = file_of(tmp_path, data)
    assert not await artifacts.has(wanted.sha256, wanted.size)
    assert await artifacts.put(path, wanted.sha256)
    assert not await artifacts.put(path, wanted.sha256)
    assert await artifacts.has(wanted.sha256, wanted.size)
    assert wanted.sha256 in await artifacts.names()
    into = tmp_path / "back"
    await artifacts.fetch(wanted.sha256, wanted.size, into)
    assert into.read_bytes() == data
    assert await artifacts.delete(wanted.sha256)
    assert not await artifacts.has(wanted.sha256, wanted.size)
    with pytest.raises(InferBusError, match="not there"):
        await artifacts.fetch(wanted.sha256, wanted.size, tmp_path / "gone")


async def test_a_file_with_another_digest_is_not_stored(bus: Bus, artifacts: Artifacts, tmp_path: Path) -> None:
    path, _ = file_of(tmp_path, os.urandom(2 * CHUNK_BYTES))
    wrong = hashlib.sha256(b"other").hexdigest()
    before = await messages(bus)
    with pytest.raises(InferBusError) as raised:
        await artifacts.put(path, wrong)
    assert raised.value.reason == "wrong_digest"
    assert wrong not in await artifacts.names()
    assert await messages(bus) == before, "nothing of it is left"


async def messages(bus: Bus) -> int:
    return int((await bus.api("STREAM.INFO.OBJ_artifacts"))["state"]["messages"])


async def test_an_empty_file_is_one(artifacts: Artifacts, tmp_path: Path) -> None:
    wanted = await stored(artifacts, tmp_path, b"")
    path = await Folder(tmp_path / "cache", artifacts, _BOUND).pull("m", "r1", [wanted])
    assert (path / wanted.name).read_bytes() == b""


async def test_a_pull_that_broke_off_goes_on_where_it_was(tearing: Tearing, tmp_path: Path) -> None:
    data = os.urandom(24 * CHUNK_BYTES)
    wanted = await stored(Artifacts(tearing), tmp_path, data)
    folder = Folder(tmp_path / "cache", Artifacts(tearing), _BOUND)
    tearing.after = 20 * CHUNK_BYTES
    with pytest.raises(ConnectionResetError):
        await folder.pull("m", "r1", [wanted])
    part = tmp_path / "cache" / "blobs" / f"{wanted.sha256}.part"
    kept = part.stat().st_size
    assert 0 < kept < len(data)
    tearing.after = 0
    path = await folder.pull("m", "r1", [wanted])
    assert tearing.asked == [0, kept]
    assert (path / wanted.name).read_bytes() == data
    assert not part.exists()


async def test_a_partial_file_that_is_wrong_is_given_up(tearing: Tearing, tmp_path: Path) -> None:
    data = os.urandom(3 * CHUNK_BYTES)
    wanted = await stored(Artifacts(tearing), tmp_path, data)
    blobs = tmp_path / "cache" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{wanted.sha256}.part").write_bytes(os.urandom(CHUNK_BYTES))
    path = await Folder(tmp_path / "cache", Artifacts(tearing), _BOUND).pull("m", "r1", [wanted])
    assert tearing.asked == [CHUNK_BYTES, 0]
    assert (path / wanted.name).read_bytes() == data


async def test_a_store_whose_content_is_not_what_its_name_says_gives_nothing(
    bus: Bus, artifacts: Artifacts, tearing: Tearing, tmp_path: Path
) -> None:
    data = os.urandom(2 * CHUNK_BYTES)
    damaged = data[: CHUNK_BYTES + 3] + b"!" + data[CHUNK_BYTES + 4 :]
    wanted = file_of(tmp_path, data)[1]

    async def content() -> AsyncIterator[bytes]:
        yield damaged

    await tearing.put(wanted.sha256, content())  # as if a chunk had rotted
    with pytest.raises(InferBusError) as raised:
        await Folder(tmp_path / "cache", artifacts, _BOUND).pull("m", "r1", [wanted])
    assert raised.value.reason == "wrong_digest"
    assert any("model.gguf" in note for note in raised.value.__notes__)
    left = [path.name for path in (tmp_path / "cache" / "blobs").iterdir() if path.stat().st_size]
    assert left == []


async def test_a_chunk_that_is_gone_is_told(bus: Bus, artifacts: Artifacts, tmp_path: Path) -> None:
    wanted = await stored(artifacts, tmp_path, os.urandom(3 * CHUNK_BYTES))
    last = (await bus.api("STREAM.INFO.OBJ_artifacts"))["state"]["last_seq"]
    await bus.api("STREAM.MSG.DELETE.OBJ_artifacts", {"seq": last - 2, "no_erase": True})
    with pytest.raises(InferBusError) as raised:
        await artifacts.fetch(wanted.sha256, wanted.size, tmp_path / "back")
    assert raised.value.reason in ("broken_object", "wrong_digest")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("size", [-1, 1])
async def test_another_size_than_the_records_is_refused(artifacts: Artifacts, tmp_path: Path, size: int) -> None:
    wanted = await stored(artifacts, tmp_path, os.urandom(1000))
    with pytest.raises(InferBusError) as raised:
        await artifacts.fetch(wanted.sha256, wanted.size + size, tmp_path / "back")
    assert raised.value.reason == "wrong_digest"


async def test_a_file_damaged_on_the_disk_is_found_and_pulled_again(artifacts: Artifacts, tmp_path: Path) -> None:
    data = os.urandom(CHUNK_BYTES)
    wanted = await stored(artifacts, tmp_path, data)
    root = tmp_path / "cache"
    path = await Folder(root, artifacts, _BOUND).pull("m", "r1", [wanted])
    blob = root / "blobs" / wanted.sha256
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(77)
        file.write(b"rotten")
    assert (path / wanted.name).read_bytes() != data, "a link"
    again = await Folder(root, artifacts, _BOUND).pull("m", "r1", [wanted])
    assert (again / wanted.name).read_bytes() == data


async def test_two_at_once_pull_once_and_both_have_it(tearing: Tearing, tmp_path: Path) -> None:
    data = os.urandom(8 * CHUNK_BYTES)
    wanted = await stored(Artifacts(tearing), tmp_path, data)
    folders = [Folder(tmp_path / "cache", Artifacts(tearing), _BOUND) for _ in range(4)]
    paths = await asyncio.gather(
        *(folder.pull("m", f"r{number % 2}", [wanted]) for number, folder in enumerate(folders))
    )
    assert len(tearing.asked) == 1
    assert all((path / wanted.name).read_bytes() == data for path in paths)


async def test_names_are_paths_and_what_a_revision_does_not_have_is_taken_away(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    one = await stored(artifacts, tmp_path, b"one", "one")
    two = await stored(artifacts, tmp_path, b"two", "two")
    folder = Folder(tmp_path / "cache", artifacts, _BOUND)
    first = await folder.pull("m", "r1", [one, two._replace(name="deep/er/two"), one._replace(name="again")])
    assert {str(path.relative_to(first)) for path in first.rglob("*") if path.is_file()} == {
        "one",
        "deep/er/two",
        "again",
    }
    second = await folder.pull("m", "r1", [two])
    assert [path.name for path in second.rglob("*") if path.is_file()] == ["two"]


async def test_above_the_bound_the_oldest_that_nobody_uses_goes(artifacts: Artifacts, tmp_path: Path) -> None:
    root, size = tmp_path / "cache", 100_000
    made = [await stored(artifacts, tmp_path, os.urandom(size), f"file{number}") for number in range(4)]
    folders: list[Any] = [Folder(root, artifacts, 2 * size + 10) for _ in made]

    def left() -> set[str]:
        return {one.name for one in made if (root / "blobs" / one.sha256).exists()}

    for number in (0, 1):
        await folders[number].pull("m", f"r{number}", [made[number]])
        stamp = 1_000_000 + number
        os.utime(root / "blobs" / made[number].sha256, (stamp, stamp))
    folders[1].close()
    await folders[2].pull("m", "r2", [made[2]])
    assert left() == {"file0", "file2"}, "the oldest is in use"
    assert not (root / "revisions" / "m" / "r1").exists(), "a link would keep its content"
    await folders[3].pull("m", "r3", [made[3]])
    assert left() == {"file0", "file2", "file3"}, "what is in use stays, also above the bound"
    folders[0].close()
    await asyncio.to_thread(folders[3].collect)
    assert left() == {"file2", "file3"}
    for folder in folders:
        folder.close()


async def test_an_operator_uploads_by_an_address(tmp_path: Path) -> None:
    path, wanted = file_of(tmp_path, b"weights")
    async with NatsServer(tmp_path / "nats") as server:
        async with connect(BusConfig(server.url, "setup")) as bus:
            await ensure_streams(bus)
        async with uploads(BusConfig(server.url, "operator")) as artifacts:
            assert await artifacts.put(path, wanted.sha256)
        async with uploads(BusConfig(server.url, "operator")) as artifacts:
            assert not await artifacts.put(path, wanted.sha256)


async def test_a_bucket_of_s3_holds_them_below_a_prefix_of_its_own(tmp_path: Path) -> None:
    if why := missing():
        pytest.skip(why)
    path, wanted = file_of(tmp_path, os.urandom(9 << 20))  # several parts
    (tmp_path / "swift").mkdir()
    async with swift(tmp_path / "swift") as server:
        said = server.settings().model_dump(exclude={"prefix"})
        async with uploads(None, ArtifactsS3.model_validate(said)) as artifacts:
            assert await artifacts.put(path, wanted.sha256)
            assert not await artifacts.put(path, wanted.sha256)
            blobs = tmp_path / "cache" / "blobs"
            blobs.mkdir(parents=True)
            (blobs / f"{wanted.sha256}.part").write_bytes(path.read_bytes()[: 3 << 20])
            folder = await Folder(tmp_path / "cache", artifacts, _BOUND).pull("m", "r1", [wanted])
            assert (folder / wanted.name).read_bytes() == path.read_bytes()
        assert await S3Store(server.settings()).names("") == [f"artifacts/{wanted.sha256}"]

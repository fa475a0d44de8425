"""Tasks that are to end."""

import asyncio

from inferbus_runtime.tasks import cancel_all


async def test_a_task_that_loses_a_cancel_ends_all_the_same() -> None:
    lost = []

    async def deaf() -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if lost:
                    raise
                lost.append(True)  # as asyncio.wait_for does when its result comes together with the cancel

    async def failing() -> None:
        raise ValueError("nobody looks")

    tasks = [asyncio.create_task(deaf()), asyncio.create_task(failing())]
    await asyncio.sleep(0)
    await cancel_all(tasks)
    assert lost == [True]
    assert tasks[0].cancelled()
    assert isinstance(tasks[1].exception(), ValueError)


async def test_an_orderly_end_is_waited_for() -> None:
    said = []

    async def orderly() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.2)
            said.append("goodbye")

    task = asyncio.create_task(orderly())
    await asyncio.sleep(0)
    await cancel_all([task])
    await cancel_all([])
    assert said == ["goodbye"]

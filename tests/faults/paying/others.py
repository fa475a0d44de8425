"""Other engines, and the call that passes the bus."""

import aiohttp
import psutil
from inferbus.worker.v1.worker_pb2 import GenerateRequest as OperatorsRequest
from inferbus.worker.v1.worker_pb2_grpc import WorkerServiceStub
from inferbus_runtime import rpc

from services.worker.tests.openai_upstreams.faults import faults
from tests.faults.paying.cases import case
from tests.harness.paying import PROMPT, WORDS, World, asked, row


@case
async def past_the_bus(world: World) -> None:
    """The operator's own call of a worker."""
    token = psutil.Process(world.stack.pids["worker-0"]).environ()["INFERBUS_WORKER_RPC_TOKEN"]
    async with rpc.channel(world.stack.content["services"]["worker-0"]["grpc"], token) as channel:
        request = OperatorsRequest()
        request.chat.messages.add(role="user", content=PROMPT)
        request.sampling.max_tokens = 17
        answers = [answer async for answer in WorkerServiceStub(channel).Generate(request)]
    assert answers[-1].usage.output_tokens == 17
    after = await world.whole(asked(18))
    await world.billed(after.headers["x-request-id"], row("length", 18))
    assert not await world.sql("SELECT request_id FROM bills WHERE output_tokens = 17 AND finish_reason = 'length'")


@case
async def estimated(world: World) -> None:
    """The upstream is this stack itself, which counts; what stands before it leaves that out."""
    async with (
        faults(world.stack.base_url) as proxy,
        aiohttp.ClientSession(headers=world.headers()) as session,
    ):
        plain, proxy.session = proxy.session, session
        await plain.close()
        proxy.always = {"no_usage"}
        settings = {"BASE_URL": proxy.url, "UPSTREAM_MODEL": "synthetic", "CAPABILITIES": "chat", "DIALECT": "plain"}
        await world.serve("guessed", ENGINE="openai", **{f"OPENAI__{key}": value for key, value in settings.items()})
        answer = await world.whole(asked(23, "guessed"))
        assert answer.status_code == 200, answer.text
        usage, words = answer.json()["usage"], answer.json()["choices"][0]["message"]["content"].split()
        assert (usage["completion_tokens"], len(words)) == (23, 23)
        expected = row("length", 23, read=usage["prompt_tokens"], estimated=True)
        await world.billed(answer.headers["x-request-id"], expected)


@case
async def embeddings(world: World) -> None:
    await world.serve("vectors", ENGINE="minilm")
    body = {"model": "vectors", "input": PROMPT}
    answer = await world.http.post(world.url(path="/v1/embeddings"), json=body, headers=world.headers())
    read = answer.json()["usage"]["prompt_tokens"]
    assert read > WORDS
    await world.billed(answer.headers["x-request-id"], row("stop", 0, read=read))

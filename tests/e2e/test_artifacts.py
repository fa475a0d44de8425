"""A model that nobody has prepared on the worker's machine: its weights in the store, its revision over HTTP, a worker
that is told two names, and an answer."""

import asyncio
import base64
import hashlib
from pathlib import Path

import httpx2 as httpx
import openai
from inferbus_artifacts.opened import uploads
from inferbus_artifacts.store import digest_of
from inferbus_bus.connection import BusConfig
from inferbus_worker.engines.llama_cpp_model import prepare

from tests.harness.beside import Beside
from tests.harness.local import Stack

MODEL, REVISION = "pulled-model", "f16-1"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


async def create(stack: Stack, files: dict[str, Path], settings: dict[str, str]) -> None:
    artifacts = []
    for name, path in files.items():
        digest = bytes.fromhex(await asyncio.to_thread(digest_of, path))
        size = path.stat().st_size
        artifacts.append({"name": name, "sha256": base64.b64encode(digest).decode(), "size_bytes": size})
    body = {
        "model": MODEL, "revision": REVISION, "engine": "llama_cpp", "settings": settings, "artifacts": artifacts,
        "precision": "f16",
    }  # fmt: skip
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {stack.admin_key}"}, timeout=60) as client:
        response = await client.post(f"{stack.root_url}/inferbus/v1/revisions", json=body)
        assert response.status_code == 200, response.text


async def test_a_worker_pulls_what_its_revision_is_made_of_and_answers_as_it(
    stack: Stack, client: openai.AsyncOpenAI, tmp_path: Path
) -> None:
    weights = (await asyncio.to_thread(prepare, tmp_path / "operator", "f16")).path
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    files = {"model.gguf": weights, "chat/template.jinja": template}
    content = stack.content
    operator = BusConfig(content["nats_url"], "admin", content["nats_seed"])
    async with uploads(operator) as store:
        for path in files.values():
            assert await store.put(path, await asyncio.to_thread(digest_of, path))
    settings = {
        "LLAMA_CPP__WEIGHTS": "{artifacts}/model.gguf",
        "LLAMA_CPP__CHAT_TEMPLATE": "{artifacts}/chat/template.jinja",
        "LLAMA_CPP__PRECISION": "f16",
        "LLAMA_CPP__KV_TOKENS": "2048",
        "CAPACITY": "2",
    }
    await create(stack, files, settings)
    cache = tmp_path / "cache"
    worker = Beside(
        stack, "worker-0", "worker-pulled", ENGINE="synthetic", MODEL=MODEL, REVISION=REVISION, MODEL_CACHE=str(cache)
    )
    await worker.start()
    try:
        answer = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Say hello."}], max_tokens=8, temperature=0
        )
        assert answer.system_fingerprint == REVISION
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
    finally:
        await worker.stop()
    folder = cache / "artifacts" / "revisions" / MODEL / REVISION
    assert (folder / "model.gguf").stat().st_nlink == 2
    assert hashlib.sha256((folder / "chat/template.jinja").read_bytes()).hexdigest() == digest_of(template)

"""OpenAI's Node SDK and the Vercel AI SDK: each script of ``node/`` in a process of its own, against the stack."""

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.conformance.clients import EMBEDDING_MODEL, MODEL
from tests.harness.local import Stack

SCRIPTS = Path(__file__).parent / "node"
# Where `make install-dev` puts what node/package.json names, Node itself included.
PACKAGES = Path(sys.prefix) / "node" / "node_modules"

pytestmark = pytest.mark.skipif(
    shutil.which("npm") is None and not PACKAGES.exists(), reason="npm is missing, so make could not install the SDKs"
)


@pytest.mark.parametrize("script", ["openai_chat", "openai_responses", "openai_others", "vercel_ai"])
async def test_node(stack: Stack, tmp_path: Path, script: str) -> None:
    assert PACKAGES.exists(), "the SDKs for Node are not installed: make install-dev"
    # Node looks for packages in the folders above a script.
    for one in SCRIPTS.glob("*.mjs"):
        shutil.copy(one, tmp_path)
    (tmp_path / "node_modules").symlink_to(PACKAGES)
    environ = {
        "PATH": os.environ["PATH"],
        "INFERBUS_BASE_URL": stack.base_url,
        "INFERBUS_API_KEY": stack.api_key,
        "INFERBUS_MODEL": MODEL,
        "INFERBUS_EMBEDDING_MODEL": EMBEDDING_MODEL,
        "INFERBUS_LIMITED_KEY": await stack.new_key(limits={"requests_per_minute": 1}),
        "INFERBUS_ADMIN_ONLY_KEY": await stack.new_key(scopes=["tenant_admin"]),
    }
    process = await asyncio.create_subprocess_exec(
        PACKAGES / ".bin" / "node", f"{script}.mjs", cwd=tmp_path, env=environ,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(150):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, out.decode()
    assert out.decode().endswith("ok\n")

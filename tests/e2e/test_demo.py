"""``inferbus demo`` as the README says it: one command, three deaths, one bill."""

import asyncio
import json
import os
from pathlib import Path

import psutil

from tests.harness.local import INFERBUS


async def test_the_bill_is_what_was_on_the_screen_whoever_died(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        INFERBUS, "demo", "--engine", "synthetic", "--tokens", "150", "--json",
        env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(300):
            out, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, complaint.decode() + out.decode()
    facts = json.loads(out)
    assert [one["name"].partition("-")[0] for one in facts["deaths"]] == ["worker", "edge", "meter"]
    assert facts["tokens_on_screen"] == facts["tokens_in_usage"] == facts["tokens_billed"] == 150
    assert facts["attempts"] >= 2, "another worker went on with it"
    assert (facts["audit_requests"], facts["audit_differences"]) == (1, 0)
    assert list(tmp_path.iterdir()) == [], "nothing is left of it"
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(one.info["cmdline"] or ())]

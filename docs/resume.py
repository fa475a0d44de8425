"""A chat stream that outlives its edge: python resume.py KEY MODEL PROMPT URL [URL ...]   (as in http://host:8080/v1)"""

# ruff: noqa: S310 (the URLs are the caller's own)
import http.client
import itertools
import json
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from typing import Any


def stream(urls: Sequence[str], key: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The chunks of one streamed chat completion, each once and in order, whichever edges die meanwhile."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    headers["Idempotency-Key"] = str(uuid.uuid4())  # a retry is the same request
    data = json.dumps({**body, "stream": True}).encode()
    wait = 0.0
    for url in itertools.cycle(urls):
        try:
            request = urllib.request.Request(f"{url}/chat/completions", data, headers)
            with urllib.request.urlopen(request, timeout=60) as lines:
                for name, _, value in (line.decode().rstrip("\r\n").partition(": ") for line in lines):
                    if name == "id":
                        event_id = value
                    elif name == "data" and value == "[DONE]":
                        return
                    elif name == "data" and "error" not in (chunk := json.loads(value)):
                        yield chunk
                        headers["Last-Event-ID"], wait = event_id, 0.0  # goes on after this one, wherever that is
                    elif name == "data" and chunk["error"]["code"] != "draining":
                        raise RuntimeError(chunk["error"]["message"])
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and (
                error.headers.get("x-should-retry") == "false" or (error.code not in (408, 429) and error.code < 500)
            ):
                raise  # what is wrong with this request is wrong at every edge
        time.sleep(wait)
        wait = min(2 * wait + 0.05, 5.0)


if __name__ == "__main__":
    key, model, prompt, *urls = sys.argv[1:]
    for chunk in stream(urls, key, {"model": model, "messages": [{"role": "user", "content": prompt}]}):
        for choice in chunk["choices"]:
            sys.stdout.write(choice["delta"].get("content") or "")
            sys.stdout.flush()

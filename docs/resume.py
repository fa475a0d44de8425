"""A chat stream that outlives its edge: python resume.py KEY MODEL PROMPT URL [URL ...]   (URL as in http://host:8080/v1)"""

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
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": str(uuid.uuid4())}  # a retry is the same request
    data = json.dumps({**body, "stream": True}).encode()
    for url in itertools.cycle(urls):
        request = urllib.request.Request(f"{url}/chat/completions", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as lines:
                for name, _, value in (line.decode().rstrip("\n").partition(": ") for line in lines):
                    if name == "id":
                        event_id = value
                    elif name == "data" and value == "[DONE]":
                        return
                    elif name == "data" and "error" not in (chunk := json.loads(value)):
                        yield chunk
                        headers["Last-Event-ID"] = event_id  # from here on, wherever it goes on
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code not in (408, 429) and error.code < 500:
                raise  # what is wrong with this request is wrong at every edge
            time.sleep(0.1)


if __name__ == "__main__":
    key, model, prompt, *urls = sys.argv[1:]
    for chunk in stream(urls, key, {"model": model, "messages": [{"role": "user", "content": prompt}]}):
        print(*(choice["delta"].get("content") or "" for choice in chunk["choices"]), sep="", end="", flush=True)

"""What the engine child answers over HTTP, besides completions: its properties, its vocabulary, its tokenizer."""

from typing import Any

import aiohttp
import orjson

# More than any vocabulary: the server takes as many as there are.
_EVERY_TOKEN = 10_000_000
_SPELLINGS = 4096


class ServerHttp:
    """A session with one child. Raises aiohttp.ClientError if it is gone."""

    def __init__(self, url: str) -> None:
        # A connection a generation: the server closes idle ones at moments when we may just be using them.
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self.session = aiohttp.ClientSession(url, connector=connector, timeout=timeout)
        self._spellings: dict[str, list[int]] = {}

    async def close(self) -> None:
        await self.session.close()

    async def props(self) -> dict[str, Any]:
        async with self.session.get("/props") as response:
            props: dict[str, Any] = orjson.loads(await response.read())
        return props

    async def vocabulary(self) -> list[bytes]:
        """What each token id stands for: the probabilities of all of them at one place name them all (0.5 s)."""
        body = {"prompt": "x", "n_predict": 1, "n_probs": _EVERY_TOKEN, "response_fields": ["completion_probabilities"]}
        answer = await self._post("/completion", body)
        every = answer["completion_probabilities"][0]["top_logprobs"]
        pieces = [b""] * (1 + max(token["id"] for token in every))
        for token in every:
            pieces[token["id"]] = bytes(token["bytes"])
        for number, piece in enumerate(pieces):
            if not piece:  # special tokens are spelled only when asked for
                pieces[number] = (await self._post("/detokenize", {"tokens": [number]}))["content"].encode()
        return pieces

    async def tokenize(self, text: str, parse_special: bool, add_special: bool) -> list[int]:
        body = {"content": text, "parse_special": parse_special, "add_special": add_special}
        ids: list[int] = (await self._post("/tokenize", body))["tokens"]
        return ids

    async def spell(self, text: str) -> list[int]:
        """The ids of a short text as the tokenizer spells it; remembered, since the same emoji come again."""
        if (ids := self._spellings.get(text)) is None:
            ids = await self.tokenize(text, parse_special=False, add_special=False)
            if len(self._spellings) >= _SPELLINGS:
                self._spellings.clear()
            self._spellings[text] = ids
        return ids

    async def erase(self, slot: int) -> None:
        """Empties an idle slot; one that still runs is emptied when it has ended."""
        async with self.session.post(f"/slots/{slot}?action=erase") as response:
            response.raise_for_status()

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self.session.post(path, data=orjson.dumps(body)) as response:
            response.raise_for_status()
            answer: dict[str, Any] = orjson.loads(await response.read())
        return answer

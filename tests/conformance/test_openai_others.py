"""Legacy completions, embeddings and models by OpenAI's SDK; tokenize and detokenize as vLLM has them."""

import math
from typing import Any

import httpx2 as httpx
import openai
import pytest

from tests.conformance.clients import EMBEDDING_MODEL, MODEL, Caller, openai_client, tokens_of
from tests.harness.local import Stack

CREATE = "completions.create"
PROMPT = "One, two, three,"


def ask(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, **more}


async def refused(client: openai.AsyncOpenAI, param: str, **more: Any) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        await client.completions.create(**ask(**more))
    assert error.value.body["param"] == param, error.value.body


# --- completions ------------------------------------------------------------------------------------------------------


async def test_a_completion_unary_and_streamed(sdk: Caller, http: httpx.AsyncClient) -> None:
    unary = await sdk.one(CREATE, **ask())
    chunks = await sdk.events(CREATE, **ask(), stream_options={"include_usage": True})
    assert unary.object == chunks[0].object == "text_completion"
    assert unary.choices[0].text
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == unary.choices[0].text
    assert [one.finish_reason for chunk in chunks for one in chunk.choices if one.finish_reason] == ["length"]
    assert unary.usage.prompt_tokens == len(await tokens_of(http, PROMPT, special=True))
    assert unary.usage.completion_tokens == 8
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (unary.usage.prompt_tokens, 8)
    default = await sdk.one(CREATE, model=MODEL, prompt=PROMPT, temperature=0)
    assert default.usage.completion_tokens == 16


async def test_prompts_as_texts_and_as_tokens(sdk: Caller, http: httpx.AsyncClient) -> None:
    other = "The capital of France is"
    one, two = [(await sdk.one(CREATE, **ask(prompt=prompt))).choices[0].text for prompt in (PROMPT, other)]
    tokens = [await tokens_of(http, prompt, special=True) for prompt in (PROMPT, other)]
    assert (await sdk.one(CREATE, **ask(prompt=tokens[0]))).choices[0].text == one
    for several in ([PROMPT, other], tokens):
        answer = await sdk.one(CREATE, **ask(prompt=several))
        assert [(choice.index, choice.text) for choice in answer.choices] == [(0, one), (1, two)]
        assert answer.usage.prompt_tokens == sum(map(len, tokens))
        assert answer.usage.completion_tokens == 16
    each_twice = await sdk.one(CREATE, **ask(prompt=[PROMPT, other], n=2))
    assert [(choice.index, choice.text) for choice in each_twice.choices] == [(0, one), (1, one), (2, two), (3, two)]
    assert each_twice.usage.prompt_tokens == sum(map(len, tokens))
    chunks = await sdk.events(CREATE, **ask(prompt=[PROMPT, other]))
    for index, text in enumerate((one, two)):
        assert "".join(part.text for chunk in chunks for part in chunk.choices if part.index == index) == text


async def test_echo_best_of_logprobs_and_stop(sdk: Caller) -> None:
    plain = (await sdk.one(CREATE, **ask())).choices[0]
    assert (await sdk.one(CREATE, **ask(echo=True))).choices[0].text == PROMPT + plain.text
    chunks = await sdk.events(CREATE, **ask(echo=True))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == PROMPT + plain.text
    best = await sdk.one(CREATE, **ask(best_of=3, temperature=1, seed=3))
    assert len(best.choices) == 1
    assert best.usage.completion_tokens > 8  # all three were generated
    told = await sdk.one(CREATE, **ask(logprobs=2))
    logprobs = told.choices[0].logprobs
    assert "".join(logprobs.tokens) == plain.text
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 8
    assert all(2 <= len(top) <= 3 for top in logprobs.top_logprobs)
    assert logprobs.text_offset == [len("".join(logprobs.tokens[:at])) for at in range(8)]
    stop = plain.text[-4:]
    cut = (await sdk.one(CREATE, **ask(stop=stop))).choices[0]
    assert (cut.text, cut.finish_reason) == (plain.text[: plain.text.index(stop)], "stop")


async def test_completions_refuse_what_they_cannot_do(client: openai.AsyncOpenAI) -> None:
    await refused(client, "suffix", suffix=" ten")
    await refused(client, "best_of", best_of=1, n=2)
    await refused(client, "logprobs", logprobs=6)
    await refused(client, "echo", logprobs=1, echo=True)
    with pytest.raises(openai.BadRequestError) as error:
        await client.completions.create(**ask(best_of=2), stream=True)
    assert error.value.body["param"] == "best_of"


# --- embeddings -------------------------------------------------------------------------------------------------------


def dot(one: list[float], two: list[float]) -> float:
    return sum(a * b for a, b in zip(one, two, strict=True))


async def test_embeddings(sdk: Caller, http: httpx.AsyncClient) -> None:
    texts = ["A cat sits on the mat.", "A kitten is lying on a rug.", "Interest rates rose by a quarter point."]
    answer = await sdk.one("embeddings.create", model=EMBEDDING_MODEL, input=texts)
    vectors = [one.embedding for one in answer.data]
    assert [one.index for one in answer.data] == [0, 1, 2]
    assert {len(vector) for vector in vectors} == {384}
    assert all(math.isclose(dot(vector, vector), 1, abs_tol=1e-5) for vector in vectors)
    assert dot(vectors[0], vectors[1]) > dot(vectors[0], vectors[2]) + 0.2
    tokens = [await tokens_of(http, text, EMBEDDING_MODEL, special=True) for text in texts]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, tokens))

    alone = await sdk.one("embeddings.create", model=EMBEDDING_MODEL, input=texts[0], encoding_format="float")
    assert alone.data[0].embedding == pytest.approx(vectors[0], abs=1e-5)
    coded = await sdk.one("embeddings.create", model=EMBEDDING_MODEL, input=texts[0], encoding_format="base64")
    assert isinstance(coded.data[0].embedding, str)
    short = await sdk.one("embeddings.create", model=EMBEDDING_MODEL, input=texts[0], dimensions=64, user="u")
    (cut,) = [one.embedding for one in short.data]
    length = math.sqrt(dot(vectors[0][:64], vectors[0][:64]))
    assert cut == pytest.approx([value / length for value in vectors[0][:64]], abs=1e-5)
    by_token = await sdk.one("embeddings.create", model=EMBEDDING_MODEL, input=tokens)
    for vector, other in zip(by_token.data, vectors, strict=True):
        assert dot(vector.embedding, other) == pytest.approx(1, abs=1e-4)


async def test_embeddings_refuse_what_they_cannot_do(client: openai.AsyncOpenAI) -> None:
    for param, more in (
        ("dimensions", {"dimensions": 1000}),
        ("input", {"input": ""}),
        ("input", {"input": []}),
        ("input", {"input": "word " * 5000}),
        ("encoding_format", {"encoding_format": "hex"}),
        ("model", {"model": MODEL}),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            await client.embeddings.create(**{"model": EMBEDDING_MODEL, "input": "x", **more})
        assert error.value.body["param"].startswith(param), error.value.body
    with pytest.raises(openai.BadRequestError) as chat:
        await client.chat.completions.create(model=EMBEDDING_MODEL, messages=[{"role": "user", "content": "x"}])
    assert chat.value.body["param"] == "model"


# --- models -----------------------------------------------------------------------------------------------------------


async def test_models_are_those_of_the_key(stack: Stack, sdk: Caller) -> None:
    listed = await sdk.listed("models.list")
    assert {MODEL, EMBEDDING_MODEL} <= {model.id for model in listed}
    one = await sdk.one("models.retrieve", MODEL)
    assert (one.id, one.object) == (MODEL, "model")
    with pytest.raises(openai.NotFoundError):
        await sdk.one("models.retrieve", "no-such-model")
    secret = await stack.new_key(models=[EMBEDDING_MODEL])
    async with openai_client(stack, api_key=secret) as narrow:
        assert [model.id async for model in narrow.models.list()] == [EMBEDDING_MODEL]
        with pytest.raises(openai.NotFoundError):
            await narrow.models.retrieve(MODEL)
        with pytest.raises(openai.NotFoundError) as error:
            await narrow.completions.create(**ask())
        assert error.value.body["code"] == "model_not_found"


# --- tokenize ---------------------------------------------------------------------------------------------------------


async def test_tokenize_and_detokenize_are_each_others_inverse(http: httpx.AsyncClient) -> None:
    for text in ("Hello, world!", "Grüße aus 東京 🌍", "  two  spaces\n"):
        answer = (
            await http.post("/tokenize", json={"model": MODEL, "prompt": text, "add_special_tokens": False})
        ).json()
        assert answer["count"] == len(answer["tokens"]) > 0
        assert answer["max_model_len"] > 0
        back = await http.post("/detokenize", json={"model": MODEL, "tokens": answer["tokens"]})
        assert back.json()["prompt"] == text
    refusals = (
        ("/tokenize", {"model": "none", "prompt": "x"}, 404),
        ("/detokenize", {"model": MODEL, "tokens": "x"}, 400),
    )
    for path, body, status in refusals:
        assert (await http.post(path, json=body)).status_code == status
    anonymous = await http.post("/tokenize", json={"model": MODEL, "prompt": "x"}, headers={"Authorization": ""})
    assert anonymous.status_code == 401

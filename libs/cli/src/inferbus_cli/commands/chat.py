"""``inferbus chat``: talk to a model in the terminal."""

import json
import sys
from dataclasses import dataclass
from typing import Any

import click
from inferbus_runtime import clock

from inferbus_cli.edge import Edge, Refused
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.text import count, rate, seconds


@dataclass(slots=True)
class Answer:
    """One answer as it was heard here. ``ttft`` and ``total``: seconds from sending to the first and the last text."""

    request_id: str = ""
    text: str = ""
    finish_reason: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    ttft: float = 0.0
    total: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of the decode: from the first token on."""
        elapsed = self.total - self.ttft
        return (self.output_tokens - 1) / elapsed if self.output_tokens > 1 and elapsed > 0 else 0.0


@click.command()
@click.argument("prompt", required=False)
@click.option("--model", help="Public name of the model; default: the only or first one that is served.")
@click.option("--system", help="System message.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Upper bound of the answer.")
@click.option("--temperature", type=float, help="0: always the most likely token.")
@click.option("--seed", type=int, help="The same seed gives the same answer.")
@json_option
@with_target
def chat(
    target: Target, prompt: str | None, model: str | None, system: str | None, as_json: bool, **sampling: Any
) -> None:
    """Ask PROMPT, or talk in turns if it is not given (end with Ctrl-D; Ctrl-C cuts an answer short)."""
    messages = [{"role": "system", "content": system}] if system else []
    with Edge(target) as edge:
        body = {"model": model or _first_model(edge), **{k: v for k, v in sampling.items() if v is not None}}
        if prompt is None:
            if as_json:
                raise click.UsageError("--json needs a PROMPT")
            _talk(edge, body, messages)
            return
        answer = Answer()
        _ask(edge, {**body, "messages": [*messages, {"role": "user", "content": prompt}]}, answer, show=not as_json)
        if as_json:
            click.echo(_json(answer, body["model"]))
        else:
            _figures(answer)


def _talk(edge: Edge, body: dict[str, Any], messages: list[dict[str, str]]) -> None:
    click.echo(f"{body['model']}: Ctrl-D ends.", err=True)
    while True:
        try:
            said = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            click.echo(err=True)
            return
        if not said.strip():
            continue
        messages.append({"role": "user", "content": said})
        answer = Answer()
        try:
            _ask(edge, {**body, "messages": messages}, answer, show=True)
        except KeyboardInterrupt:  # leaving the stream has cancelled the generation
            click.echo()
        except Refused as error:
            messages.pop()
            error.show()
            continue
        _figures(answer)
        messages.append({"role": "assistant", "content": answer.text})


def _ask(edge: Edge, body: dict[str, Any], answer: Answer, show: bool) -> None:
    """Fill ``answer`` from the stream, writing its text out as it comes."""
    began = clock.monotonic()
    for chunk in edge.chat({**body, "stream": True, "stream_options": {"include_usage": True}}):
        answer.request_id = chunk.get("id", answer.request_id)
        if usage := chunk.get("usage"):
            answer.input_tokens, answer.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        for choice in chunk.get("choices", ()):
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
            text = choice["delta"].get("content") or ""
            if not text:
                continue
            answer.total = clock.monotonic() - began
            answer.ttft = answer.ttft or answer.total
            answer.text += text
            if show:
                click.echo(text, nl=False)
    if show:
        click.echo()


def _figures(answer: Answer) -> None:
    cut = " (cut at the token limit)" if answer.finish_reason == "length" else ""
    click.secho(
        f"{count(answer.input_tokens)} tokens in, {count(answer.output_tokens)} out{cut} · "
        f"first after {seconds(answer.ttft)} · {rate(answer.tokens_per_second)} tokens/s",
        dim=True,
        err=True,
    )


def _json(answer: Answer, model: str) -> str:
    return json.dumps(
        {
            "id": answer.request_id,
            "model": model,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "input_tokens": answer.input_tokens,
            "output_tokens": answer.output_tokens,
            "ttft_seconds": round(answer.ttft, 6),
            "e2e_seconds": round(answer.total, 6),
            "tokens_per_second": round(answer.tokens_per_second, 2),
        }
    )


def _first_model(edge: Edge) -> str:
    entries = edge.models()
    if not entries:
        raise Refused("no model is served yet: no worker has registered")
    return str(entries[0]["id"])

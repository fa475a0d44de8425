"""``inferbus up``: the whole platform on this machine, in the foreground."""

import asyncio
import shlex
import sys
from pathlib import Path
from typing import Any

import click
from inferbus_runtime import clock
from inferbus_stack.home import Home, StackError
from inferbus_stack.services import StackOptions
from inferbus_stack.up import run_stack
from rich.console import Console
from rich.status import Status

from inferbus_cli.sizes import Size
from inferbus_cli.target import home_option
from inferbus_cli.text import seconds

_DEFAULT_PORT = 8080
_AUTOSCALED = 4
_SLOTS = 4
MODELS = {"llama_cpp": "smollm2-135m-instruct", "synthetic": "synthetic"}
# Told by the worker's own variables what they serve.
_CONFIGURED = ("openai", "tensorrt_llm", "transformers", "triton")


@click.command()
@home_option
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=_DEFAULT_PORT, show_default=True, help="Of the API; 0: any free."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the API; 0.0.0.0: all of them.")
@click.option("--workers", type=click.IntRange(1, 64), help="1 by default; with --autoscale the most, by default 4.")
@click.option(
    "--autoscale",
    is_flag=True,
    help="Start and drain workers as their deployment asks (inferbus deployments); without one: from 1 to --workers.",
)
@click.option(
    "--slots",
    type=click.IntRange(0, 64),
    default=_SLOTS,
    show_default=True,
    help="More workers that may be started: for other models (their registered revisions), or another revision.",
)
@click.option(
    "--memory",
    type=Size(),
    help="What the workers of all models may take together, as 2GiB: they give it to each other. Any, if not said.",
)
@click.option("--edges", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--meters", type=click.IntRange(1, 16), default=1, show_default=True)
@click.option("--schedulers", type=click.IntRange(1, 16), default=1, show_default=True)
@click.option("--batches", type=click.IntRange(1, 16), default=1, show_default=True, help="Batch services.")
@click.option(
    "--engine",
    type=click.Choice(sorted((*MODELS, *_CONFIGURED))),
    default="llama_cpp",
    show_default=True,
    help="llama_cpp: a real small model on the CPU. synthetic: a timing model of a GPU, for load tests. "
    "The others serve what their variables INFERBUS_WORKER_… name.",
)
@click.option(
    "--embeddings/--no-embeddings",
    default=None,
    help="A second worker with a small embedding model; by default beside llama_cpp only.",
)
@click.option(
    "--tls",
    is_flag=True,
    help="HTTPS at the edge, mutual TLS between services and to the broker, by a certificate authority of this stack.",
)
@click.option("--tls-name", "tls_names", multiple=True, help="Another host name or address of the edge; implies --tls.")
def up(
    home: Path,
    port: int,
    host: str,
    workers: int | None,
    autoscale: bool,
    slots: int,
    memory: int | None,
    edges: int,
    meters: int,
    schedulers: int,
    batches: int,
    engine: str,
    embeddings: bool | None,
    tls: bool,
    tls_names: tuple[str, ...],
) -> None:
    """Start everything on this machine; Ctrl-C stops it in order, a second one at once.

    All data is under --home: starting again on it continues with the same keys and data.
    """
    options = StackOptions(
        home=Home(home.resolve()),
        engine=engine,
        host=host,
        port=port,
        workers=workers or (_AUTOSCALED if autoscale else 1),
        autoscale=autoscale,
        slots=slots,
        memory=memory or 0,
        edges=edges,
        meters=meters,
        schedulers=schedulers,
        batches=batches,
        embeddings=engine == "llama_cpp" if embeddings is None else embeddings,
        tls=tls or bool(tls_names),
        tls_names=tls_names,
    )
    console = Console(highlight=False, soft_wrap=True)
    began = clock.monotonic()
    with console.status("starting") as status:

        def say(text: str) -> None:
            console.print(f"[dim]{seconds(clock.monotonic() - began):>8}[/]  ", end="")
            console.print(text, markup=False)

        def on_ready(stack: dict[str, Any]) -> None:
            _ready(console, status, stack, options.home, MODELS.get(engine), clock.monotonic() - began)

        try:
            asyncio.run(run_stack(options, say, on_ready))
        except StackError as error:
            raise click.ClickException(str(error)) from None
    console.print("stopped; nothing is left running")


def _ready(console: Console, status: Status, stack: dict[str, Any], home: Home, model: str | None, took: float) -> None:
    """Keys are shown to a person only: a journal or a CI system would keep them, for many to read."""
    status.stop()
    # Not the console's word for it: FORCE_COLOR and its like make a terminal of anything.
    personal = sys.stdout.isatty()
    api_key, admin_key = home.secrets / "api-key", home.secrets / "admin-key"
    others = [entry["url"] for name, entry in stack["services"].items() if name.startswith("edge-")]
    console.print(f"\n[bold green]Ready[/] after {took:.1f} s")
    console.print(f"  base URL   {stack['base_url']}")
    for url in others:
        console.print(f"  and        {url}/v1")
    console.print(f"  API key    {stack['api_key'] if personal else f'in {api_key}'}", markup=False)
    console.print(f"  admin key  {stack['admin_key'] if personal else f'in {admin_key}'}", markup=False)
    if "ca" in stack:
        console.print(f"  authority  {stack['ca']}", markup=False)
    console.print("\nTry:")
    believe = f" --cacert '{stack['ca']}'" if "ca" in stack else ""
    bearer = f"'Authorization: Bearer {stack['api_key']}'"
    if not personal:
        bearer = f'"Authorization: Bearer $(cat {shlex.quote(str(api_key))})"'
    if model is None:
        console.print(f"  curl{believe} {stack['base_url']}/models -H {bearer}\n", markup=False)
        return
    body = f'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Say hello."}}]}}'
    console.print(
        f"  curl -N{believe} {stack['base_url']}/chat/completions -H {bearer} "
        f"-H 'Content-Type: application/json' -d '{body}'\n",
        markup=False,
    )

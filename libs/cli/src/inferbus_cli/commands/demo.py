"""``inferbus demo``: a chat streams while a worker, an edge and the meter are killed; the text goes on, and the bill
equals what is on the screen."""

import json
import signal
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import click
from inferbus.meter.v1.meter_pb2 import AuditResponse, AuditSummary
from inferbus_runtime import clock
from rich.console import Console

from inferbus_cli.demo_stack import DemoStack
from inferbus_cli.edge import Edge, Refused, Unreachable, as_message
from inferbus_cli.fleet import fleet_of
from inferbus_cli.resuming import Ended, Moved, Piece, ResumingStream
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.text import count, seconds

_PROMPT = "Tell me a long story about a lighthouse, a storm, and a machine that never stopped. Take your time."
# Who dies, when so much of the answer is there.
_DEATHS = (("worker", 0.2), ("edge", 0.45), ("meter", 0.7))
# A pause is named in the text if it was longer than so much, and than so many usual ones.
_SHOWN_SECONDS, _SHOWN_TIMES = 0.1, 5.0
_BILL_SECONDS = 90.0
_UNEQUAL, _ENDED = 1, 143


@dataclass(slots=True)
class Death:
    """``pause``: the longest time without new text from then on until the next death, or the end."""

    name: str
    pid: int
    at: float
    tokens: int
    pause: float = 0.0
    went_on: str = ""
    shown: bool = False


@dataclass(slots=True)
class Story:
    """What was heard. ``pauses``: between two pieces each, before anybody died."""

    deaths: list[Death] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    last: float = 0.0
    tokens: int = 0
    ended: Ended | None = None

    def piece(self, piece: Piece) -> float:
        """The pause before it; 0 before the first."""
        pause = piece.at - self.last if self.last else 0.0
        dying = self.deaths[-1] if self.deaths and piece.at > self.deaths[-1].at else None
        if dying is not None:
            dying.pause = max(dying.pause, pause)
        elif self.last:
            self.pauses.append(pause)
        self.last, self.tokens = piece.at, piece.tokens
        return pause

    @property
    def usual(self) -> float:
        """The median pause."""
        return statistics.median(self.pauses) if self.pauses else 0.0

    def died(self, at: float) -> list[Death]:
        """Those that had died by then, each once."""
        found = [one for one in self.deaths if one.at < at and not one.shown]
        for one in found:
            one.shown = True
        return found


@click.command()
@click.option(
    "--engine",
    type=click.Choice(("llama_cpp", "synthetic")),
    default="llama_cpp",
    show_default=True,
    help="llama_cpp: a real small model on the CPU. synthetic: a timing model, which says no words.",
)
@click.option("--tokens", type=click.IntRange(60, 4000), default=400, show_default=True, help="Length of the answer.")
@click.option("--keep", is_flag=True, help="Leave the folder of the platform, with its logs.")
@click.option("--json", "as_json", is_flag=True, help="Print what happened as JSON, for scripts.")
def demo(engine: str, tokens: int, keep: bool, as_json: bool) -> None:
    """Start a platform of its own on this machine, kill parts of it while a chat streams, and check the bill.

    About a minute. Nothing is left of it. Exit code 1 if the bill is not what was on the screen.
    """
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: sys.exit(_ENDED))  # in order: nothing of the stack is left
    began = clock.monotonic()
    console = Console(quiet=True) if as_json else terminal()
    console.print("Starting a platform: nats-server, ClickHouse, 2 edges, scheduler, 2 workers, meter ...", style="dim")
    with DemoStack(engine, keep=keep) as stack:
        console.print(f"Ready after {seconds(clock.monotonic() - began)}. You: {_PROMPT}\n", style="dim", markup=False)
        story, stream = _tell(console, stack, tokens)
        if story.ended is None or story.ended.error:
            raise Refused(f"the stream failed: {story.ended.error if story.ended else 'it has no end'}")
        with Edge(stack.target(stream.url)) as edge:
            bill = _bill(edge, stream.stream_id)
            audit = _audit(edge)
    facts = _facts(story, bill, audit)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        _show(console, story, facts, clock.monotonic() - began)
        if keep:
            console.print(f"Its folder: {stack.folder}", style="dim", markup=False)
    if not facts["equal"]:
        raise SystemExit(_UNEQUAL)


def _tell(console: Console, stack: DemoStack, tokens: int) -> tuple[Story, ResumingStream]:
    story = Story()
    with Edge(stack.target(stack.edges[0])) as edge:
        model = str(edge.models()[0]["id"])
    body = {"model": model, "messages": [{"role": "user", "content": _PROMPT}], "max_tokens": tokens, "temperature": 0}
    stream = ResumingStream(stack.edges, stack.content["api_key"], body)
    to_die = list(_DEATHS)
    for heard in stream:
        match heard:
            case Piece():
                pause = story.piece(heard)
                for death in story.died(heard.at):
                    console.print(f" ✂ kill -9 {death.name} ", style="bold red", markup=False, end="")
                if story.deaths and pause > max(_SHOWN_SECONDS, _SHOWN_TIMES * story.usual):
                    console.print(f" [{seconds(pause)}] ", style="bold green", markup=False, end="")
                console.print(heard.text, markup=False, end="", soft_wrap=True)
                if to_die and heard.tokens >= tokens * to_die[0][1]:
                    _kill(stack, stream, story, to_die.pop(0)[0])
            case Moved(_, url, number):
                if story.deaths:
                    story.deaths[-1].went_on = f"at {stack.name_of(url)}, after event {number}"
            case Ended():
                story.ended = heard
    console.print("\n")
    return story, stream


def _kill(stack: DemoStack, stream: ResumingStream, story: Story, role: str) -> None:
    name = role
    if role == "edge":
        name = stack.name_of(stream.url)
    elif role == "worker":
        name = _who_works(stack, stream.url)
    pid = stack.kill(name)
    story.deaths.append(Death(name, pid, clock.monotonic(), story.tokens))


def _who_works(stack: DemoStack, url: str) -> str:
    """The worker that generates the answer."""
    with Edge(stack.target(url)) as edge:
        workers = fleet_of(edge, 10.0).picture.workers
    return max(workers, key=lambda one: one.active).record.worker


def _bill(edge: Edge, request_id: str) -> dict[str, Any]:
    """The request as it was billed, once it is: the meter was killed, and comes back first."""
    deadline = clock.monotonic() + _BILL_SECONDS
    while True:
        try:
            found = edge.facts(f"/requests/{request_id}", patience=10.0)
            if found["request"].get("state") == "REQUEST_STATE_ENDED" and "charge" in found:
                return found
        except (Refused, Unreachable):
            if clock.monotonic() > deadline:
                raise
        if clock.monotonic() > deadline:
            raise Refused("the bill of the answer did not come")
        time.sleep(0.2)


def _audit(edge: Edge) -> AuditSummary:
    summary = AuditSummary(differences=1)
    for line in edge.lines("POST", "/audit", json={"timeout": 60}, patience=60.0):
        message = as_message(line, AuditResponse())
        if message.HasField("summary"):
            summary = message.summary
    return summary


def _facts(story: Story, bill: dict[str, Any], audit: AuditSummary) -> dict[str, Any]:
    request, charge = bill["request"], bill["charge"]
    billed = int(request.get("output_tokens", 0))
    counted = story.ended.tokens if story.ended is not None else 0
    differences = int(audit.differences)
    return {
        "deaths": [asdict(one) for one in story.deaths],
        "median_pause": story.usual,
        "tokens_on_screen": story.tokens,
        "tokens_in_usage": counted,
        "tokens_billed": billed,
        "charge": f"{charge.get('amount', '0')} {charge.get('currency', '')}".strip(),
        "attempts": int(request.get("attempts", 1)),
        "audit_requests": int(audit.requests),
        "audit_differences": differences,
        "equal": story.tokens == counted == billed and differences == 0 and len(story.deaths) == len(_DEATHS),
    }


def _show(console: Console, story: Story, facts: dict[str, Any], took: float) -> None:
    usual = f"a usual one: {seconds(facts['median_pause'])}"
    table = Rows(Column("killed (-9)"), Column(f"longest pause ({usual})", number=True), Column("the text went on"))
    for one in story.deaths:
        table.add(one.name, seconds(one.pause), one.went_on or _otherwise(one))
    console.print(table)
    verdict, style = ("=", "bold green") if facts["equal"] else ("is not", "bold red")
    audit = count(facts["audit_differences"]) if facts["audit_differences"] else "no"
    console.print(
        f"{count(facts['tokens_on_screen'])} tokens on the screen {verdict} {count(facts['tokens_billed'])} tokens on "
        f"the bill ({facts['charge']}). Audit: {audit} difference in {count(facts['audit_requests'])} requests.",
        style=style, markup=False,
    )  # fmt: skip
    console.print(f"It took {seconds(took)}. Nothing is left running.", style="dim")


def _otherwise(death: Death) -> str:
    if death.name.startswith("worker"):
        return "at the other worker, at the next token"
    return "nobody noticed"

"""A question and its answer as JSON, for the API and for scripts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from inferbus_sizing.architecture import Architecture
from inferbus_sizing.configuration import architecture_of
from inferbus_sizing.errors import DoesNotFitError, SizingError
from inferbus_sizing.figure import Figure
from inferbus_sizing.hardware import GPUS, PRICE_SOURCE
from inferbus_sizing.models import model_of, models
from inferbus_sizing.plan import Plan, compare
from inferbus_sizing.precision import KV_BYTES, PRECISIONS
from inferbus_sizing.wanted import Wanted

_TEXTS = ("gpu", "precision", "kv_precision")
_WHOLE = ("context", "concurrency", "input_tokens", "output_tokens", "gpus_per_replica")
_NUMBERS = (
    "ttft_seconds", "itl_seconds", "dollars_per_hour", "dollars_per_kwh", "api_price_in", "api_price_out",
    "requests_per_month",
)  # fmt: skip
FIELDS = ("model", "config", *_TEXTS, *_WHOLE, *_NUMBERS)
_MOST_FIELDS = 500
_FIRST_GPU = "h100"
_CONTEXT = 8192


@dataclass(frozen=True, slots=True)
class Asked:
    """``gpus``: to compare; the one that was named, or all."""

    wanted: Wanted
    gpus: tuple[str, ...]


def asked_of(body: Mapping[str, Any]) -> Asked:
    """A JSON object with ``model`` (a built-in name) or ``config`` (a config.json), and what else :class:`Wanted` has.

    A null is as good as nothing. Raises :class:`SizingError` with the field that is wrong.
    """
    given = {name: value for name, value in body.items() if value is not None}
    for name in given:
        if name not in FIELDS:
            raise SizingError(name[:64], f"There is no field '{name[:64]}'; there are {', '.join(FIELDS)}")
    values = {name: _typed(name, value) for name, value in given.items() if name not in ("model", "config")}
    gpu = values.pop("gpu", "")
    model = _model(given)
    values.setdefault("context", min(_CONTEXT, model.context_limit))
    wanted = Wanted(model, gpu=gpu or _FIRST_GPU, **values)
    if not gpu and wanted.dollars_per_hour is not None:
        raise SizingError("dollars_per_hour", "A price is of one GPU: name it in 'gpu'")
    return Asked(wanted, (wanted.hardware.name,) if gpu else tuple(GPUS))


def answer_of(asked: Asked) -> dict[str, Any]:
    """A plan for each GPU, or why there is none."""
    made = compare(asked.wanted, asked.gpus)
    return {
        "object": "inferbus.sizing",
        "wanted": _wanted_object(asked.wanted),
        "plans": [_plan_object(name, one) for name, one in made],
    }


def catalogue() -> dict[str, Any]:
    """What can be asked for by its name."""
    return {
        "object": "inferbus.sizing.catalogue",
        "models": [
            {
                "name": one.name, "title": one.title, "source": one.source,
                "parameters": one.architecture.parameters, "active_parameters": one.architecture.active_parameters,
                "context_limit": one.architecture.context_limit, "precision": one.architecture.native,
            }
            for one in models().values()
        ],
        "gpus": [
            {
                "name": one.name, "title": one.title, "memory": one.memory, "bandwidth": one.bandwidth,
                "flops": dict(one.flops), "watts": one.watts, "link": one.link, "link_title": one.link_title,
                "dollars_per_hour": one.dollars_per_hour, "price_source": PRICE_SOURCE, "source": one.source,
            }
            for one in GPUS.values()
        ],
        "precisions": [
            {"name": one.name, "title": one.title, "bytes": one.bytes, "source": one.source}
            for one in PRECISIONS.values()
        ],
        "kv_precisions": [{"name": name, "bytes": size} for name, size in KV_BYTES.items()],
    }  # fmt: skip


def _model(given: Mapping[str, Any]) -> Architecture:
    name, config = given.get("model"), given.get("config")
    if (name is None) == (config is None):
        raise SizingError("model", "Name a built-in 'model', or give a 'config'")
    if config is None:
        if not isinstance(name, str):
            raise SizingError("model", "'model' must be a text")
        return model_of(name).architecture
    if not isinstance(config, Mapping) or len(config) > _MOST_FIELDS:
        raise SizingError("config", f"'config' must be a config.json: an object of up to {_MOST_FIELDS} fields")
    return architecture_of(config)


def _typed(name: str, value: Any) -> Any:
    if name in _TEXTS:
        if not isinstance(value, str):
            raise SizingError(name, f"'{name}' must be a text")
        return value.lower()
    if isinstance(value, bool) or not isinstance(value, int if name in _WHOLE else int | float):
        raise SizingError(name, f"'{name}' must be a {'whole ' if name in _WHOLE else ''}number")
    return value


def _wanted_object(wanted: Wanted) -> dict[str, Any]:
    """As it was understood: with its defaults, and the precisions that follow from others."""
    said = {one.name: getattr(wanted, one.name) for one in fields(wanted) if one.name not in ("model", "gpu")}
    return {"model": wanted.model.name, **said, "precision": wanted.numbers.name}


def _plan_object(name: str, made: Plan | DoesNotFitError) -> dict[str, Any]:
    gpu = {"gpu": name, "title": GPUS[name].title}
    if isinstance(made, DoesNotFitError):
        return {**gpu, "fits": False, "reason": str(made)}
    crossing = made.crossover
    return {
        **gpu,
        "fits": True,
        "parallel": made.choice.deployment.parallel.name,
        "precision": made.wanted.numbers.name,
        "arithmetic": made.wanted.hardware.rate(made.wanted.numbers.arithmetic)[0],
        "kv_precision": made.wanted.kv_name,
        "figures": {one.name: _figure_object(one) for one in made.figures},
        "memory": {**asdict(made.memory), "spare": made.memory.spare},
        "timing": asdict(made.timing),
        "crossover": None if crossing is None else asdict(crossing),
    }


def _figure_object(figure: Figure) -> dict[str, Any]:
    return {
        "title": figure.title, "value": figure.value, "unit": figure.unit, "formula": figure.formula,
        "source": figure.source,
    }  # fmt: skip

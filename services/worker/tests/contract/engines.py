"""The engines that the contract runs on: one module each, found by its name in the folder above.

A module ``engine_<column>.py`` has

NAME            the engine, as in its configuration
TITLE           of its column, where that is not NAME
CAPABILITIES    what the started engine says that it can
CAN             features beyond them that it has (``behaviours.FEATURES``)
PREFILL_WORDS   words that take it a while to read
NEVER_RUN       set where no machine has run it yet: why
SOAK            behaviours whose tests take long on it, or trip over its server's own faults: run by make soak
WHY             of a feature that it lacks: the reason, for the table
missing()       why it cannot run here; empty if it can
made(cache)     context manager: the engine, not started, with its real servers running; further arguments change its
                Config or, by a section's name, a section of it
kill(engine)    ends the part that generates, as a crash would
held(engine)    how many things outside of this process it has: processes, models, connections; left out if none
SMALL_CACHE     changes for ``made`` with which its cache keeps few prompts; left out if it tells of none
UNLOADS         changes for ``made`` with which the engine unloads what it served when it stops; left out if none
crowded(cache)  as made, with a server that has room for little; with the feature overload
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from services.worker.tests.contract.behaviours import FEATURES

_FOLDER = Path(__file__).parents[1]


def columns() -> dict[str, Any]:
    """Modules by their column's name, in the table's order. KeyError for a claimed feature that does not exist."""
    found = {}
    for path in _FOLDER.glob("engine_*.py"):
        module: Any = import_module(f"services.worker.tests.{path.stem}")
        for name in has(module):
            FEATURES[name]
        found[path.stem.removeprefix("engine_")] = module
    return dict(sorted(found.items(), key=lambda item: (item[1].NAME, title(item[1]))))


def title(module: Any) -> str:
    return str(getattr(module, "TITLE", f"`{module.NAME}`"))


def has(module: Any) -> frozenset[str]:
    """All features of its engine."""
    return frozenset(module.CAPABILITIES) | module.CAN

"""Which workers run something of a lower class: so that nobody looks for it where there is none, nor at all of them."""

from itertools import islice

from inferbus_scheduler.core.request import Priority


class LowerWork:
    """By base model and class, the workers that run something of a class below that one."""

    def __init__(self) -> None:
        self._names: dict[Priority, dict[str, dict[str, None]]] = {priority: {} for priority in Priority}

    def set(self, model: str, name: str, above: Priority, *, runs: bool) -> None:
        """Whether ``name`` runs something of a class below ``above``."""
        models = self._names[above]
        if runs:
            models.setdefault(model, {}).setdefault(name)
        elif name in (names := models.get(model, {})):
            del names[name]
            if not names:
                del models[model]

    def remove(self, model: str, name: str) -> None:
        for above in Priority:
            self.set(model, name, above, runs=False)

    def any(self, model: str, above: Priority) -> bool:
        return model in self._names[above]

    def some(self, model: str, above: Priority, most: int) -> list[str]:
        """At most so many of them; if there are more, others come first the next time."""
        names = self._names[above].get(model, {})
        chosen = list(islice(names, most))
        for name in chosen if len(names) > most else ():
            del names[name]
            names[name] = None
        return chosen

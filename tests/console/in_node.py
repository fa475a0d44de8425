"""The console's modules that neither ask nor draw, in Node."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

Js = Callable[..., Any]
# An example is many cases in one process: a process each would take its time.
FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def found_node() -> str | None:
    """The system's, or that which ``make install-dev`` installs."""
    own = Path(sys.prefix) / "node" / "node_modules" / ".bin" / "node"
    return shutil.which("node") or shutil.which(own)


def batch_modules(node: str, folder: Path) -> Js:
    """``js(body, input)``: what the function of ``input``, ``data`` and ``form`` (``lib/batches_data.js`` and
    ``batches_form.js``) returns. ``folder``: an empty one."""
    return _modules(node, folder, {"data": "batches_data", "form": "batches_form"})


def play_modules(node: str, folder: Path) -> Js:
    """The same with ``sse``, ``cost``, ``figures``, ``form``, ``code`` and ``text`` (``lib/play_sse.js``, …)."""
    return _modules(node, folder, {name: f"play_{name}" for name in ("sse", "cost", "figures", "form", "code", "text")})


def deployment_modules(node: str, folder: Path) -> Js:
    """The same with ``data`` and ``ask`` (``lib/deployments_data.js`` and ``deployments_ask.js``)."""
    return _modules(node, folder, {name: f"deployments_{name}" for name in ("data", "ask")})


def _modules(node: str, folder: Path, modules: dict[str, str]) -> Js:
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "lib").mkdir()
    for one in resources.files("inferbus_edge").joinpath("console", "lib").iterdir():
        (folder / "lib" / one.name).write_bytes(one.read_bytes())
    imports = " ".join(f"import * as {name} from './lib/{file}.js';" for name, file in modules.items())

    def run(body: str, said: Any = None) -> Any:
        script = (
            f"{imports} import {{ readFileSync }} from 'node:fs'; const input = JSON.parse(readFileSync(0, 'utf8'));"
            f"console.log(JSON.stringify((() => {{ {body} }})()));"
        )
        (folder / "run.js").write_text(script)
        done = subprocess.run(
            [node, "run.js"], cwd=folder, input=json.dumps(said), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run

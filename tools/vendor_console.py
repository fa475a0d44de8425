"""Fetches what the console takes from npm, at a pinned version, into services/edge/src/inferbus_edge/console/vendor.

    .venv/bin/python tools/vendor_console.py            fetch and write the files, their licence and manifest.json
    .venv/bin/python tools/vendor_console.py --check    exit code 1 if a file is not that of the manifest (no network)

The files are committed: the console is served as it lies here, without a build and without any request to elsewhere.
"""

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).parents[1] / "services/edge/src/inferbus_edge/console/vendor"
PACKAGE, VERSION = "uplot", "1.6.32"
# Path in the package -> name here. The minified build is one script that defines `uPlot`.
FILES = {
    "dist/uPlot.iife.min.js": "uplot.js",
    "dist/uPlot.min.css": "uplot.css",
    "LICENSE": "uplot.LICENSE.txt",
}


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        wrong = differences()
        print("\n".join(wrong) or "the vendored files are those of the manifest")
        return 1 if wrong else 0
    if arguments:
        print(__doc__)
        return 2
    fetch()
    return 0


def fetch() -> None:
    """npm checks the package against the registry's integrity value before it is unpacked."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"], cwd=folder, check=True)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as package:
            contents = {name: package.extractfile(f"package/{name}").read() for name in FILES}
    VENDOR.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (VENDOR / FILES[name]).write_bytes(content)
    manifest = {
        "package": PACKAGE,
        "version": VERSION,
        "licence": "MIT",
        "sha256": {FILES[name]: _digest(contents[name]) for name in FILES},
    }
    (VENDOR / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def differences() -> list[str]:
    """What lies in the folder and is not in the manifest, is missing, or is another file."""
    known = json.loads((VENDOR / "manifest.json").read_text())["sha256"]
    found = {path.name: _digest(path.read_bytes()) for path in VENDOR.iterdir() if path.name != "manifest.json"}
    return [f"{name}: not as in the manifest" for name in sorted(known | found) if known.get(name) != found.get(name)]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Generate the Python code of every file under proto/ into libs/contracts (``make proto``).

``--check`` generates into a temporary folder and fails if what is committed differs.
"""

import argparse
import filecmp
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
TARGET = ROOT / "libs" / "contracts" / "src"
# The folders of proto/, which are the packages of Python.
PACKAGES = ("inferbus", "externalscaler")


def generate(out: Path) -> None:
    """Write messages, stubs and their types for all proto files below ``out``, in place of what was there."""
    for package in PACKAGES:
        shutil.rmtree(out / package, ignore_errors=True)
    files = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    plugins = Path(sys.executable).parent
    subprocess.run(
        [
            sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}",
            f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
            f"--python_out={out}", f"--mypy_out=quiet:{out}", *files,
        ],
        check=True, cwd=PROTO,
    )  # fmt: skip
    services = [name for name in files if re.search(r"^service ", (PROTO / name).read_text(), re.MULTILINE)]
    subprocess.run(
        [
            sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}",
            f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
            f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}", *services,
        ],
        check=True, cwd=PROTO,
    )  # fmt: skip
    for package in (out / name for name in PACKAGES):
        for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
            (folder / "__init__.py").touch()
        (package / "py.typed").touch()


def tree(root: Path) -> set[Path]:
    paths = (path for package in PACKAGES for path in (root / package).rglob("*"))
    return {path.relative_to(root) for path in paths if path.suffix in (".py", ".pyi", ".typed")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        generate(TARGET)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        names = tree(fresh) | tree(TARGET)
        drifted = sorted(
            str(name)
            for name in names
            if not ((fresh / name).exists() and (TARGET / name).exists())
            or not filecmp.cmp(fresh / name, TARGET / name, shallow=False)
        )
    for name in drifted:
        print(f"drift: {name}: run `make proto` and commit", file=sys.stderr)
    return 1 if drifted else 0


if __name__ == "__main__":
    sys.exit(main())

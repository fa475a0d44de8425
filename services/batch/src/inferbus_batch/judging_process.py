"""``python -m inferbus_batch.judging_process``: one validation, asked on stdin, told on stdout."""

import pickle
import sys
from pathlib import Path

from inferbus_runtime.parent import die_with_parent

from inferbus_batch.validating import validate

if __name__ == "__main__":
    die_with_parent()
    source, index, endpoint, models, max_lines = pickle.load(sys.stdin.buffer)  # noqa: S301 (what our parent says)
    report = validate(Path(source), Path(index), endpoint, models, max_lines)
    sys.stdout.buffer.write(pickle.dumps(report))

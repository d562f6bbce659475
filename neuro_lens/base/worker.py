"""Run a share of cells as a job: ``python -m neuro_lens.base.worker OUT FILE``.

FILE holds a line of JSON a cell; beside it, with the ending ``.done``, comes a line of JSON a cell
with its folder or the sentence of its error.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .executors import outcome
from .files import atomic_write


def main(out: str, file: str) -> None:
    """Run the cells of a file into ``out``, each whatever becomes of the others."""
    done = [outcome(job, out) for job in Path(file).read_text().splitlines()]
    with atomic_write(Path(file).with_suffix(".done")) as part:
        part.write_text("".join(f"{line}\n" for line in done))


if __name__ == "__main__":
    main(*sys.argv[1:])

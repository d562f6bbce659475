"""What every room shares: batches, tasks, errors, files, progress and cells."""

from .batch import Batch, as_batch
from .cells import Cell, finished_cells, one_thread, run_cell
from .errors import NeuroLensError, check_choice, nearest
from .executors import check_executor, run_cells
from .files import (
    atomic_folder,
    atomic_write,
    hash_json,
    hash_module,
    hash_tensors,
    provenance,
    read_json,
    read_table,
    refuse_foreign,
    write_json,
    write_table,
)
from .metrics import accuracy, log_loss
from .program import program
from .progress import progress, track
from .task import Task

__all__ = [
    "Batch",
    "Cell",
    "NeuroLensError",
    "Task",
    "accuracy",
    "as_batch",
    "atomic_folder",
    "atomic_write",
    "check_choice",
    "check_executor",
    "finished_cells",
    "hash_json",
    "hash_module",
    "hash_tensors",
    "log_loss",
    "nearest",
    "one_thread",
    "program",
    "progress",
    "provenance",
    "read_json",
    "read_table",
    "refuse_foreign",
    "run_cell",
    "run_cells",
    "track",
    "write_json",
    "write_table",
]

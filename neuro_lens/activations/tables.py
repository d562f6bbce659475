"""Tables of a store: Arrow tables that grow part by part, and their Parquet files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from neuro_lens.base import NeuroLensError

GROUP_ROWS = 2**16
NULLABLE = {pa.int64(): pd.Int64Dtype(), pa.int32(): pd.Int32Dtype()}


def to_arrow(columns: pd.DataFrame | Mapping[str, Any]) -> pa.Table:
    """Return columns of one length as a table: text as ``string``, categories as their values.

    Raises
    ------
    NeuroLensError
        For a column that Parquet cannot hold, such as one of text and numbers.
    """
    arrays = {}
    for name, column in columns.items():
        try:
            array = pa.array(column, from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise NeuroLensError(
                f"the labels cannot be stored: column {str(name)!r} holds values that do not go "
                f"together ({error}); give each column values of one kind"
            ) from None
        arrays[str(name)] = array.cast(_plain(array.type))
    return pa.table(arrays)


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Return a DataFrame; whole numbers with nulls among them are ``Int64``."""
    frame = table.to_pandas(types_mapper=NULLABLE.get, ignore_metadata=True)
    whole = [
        name
        for name, column in frame.items()
        if column.dtype in NULLABLE.values() and not column.isna().any()
    ]
    return frame.astype({name: frame[name].dtype.numpy_dtype for name in whole})


def unified(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Return the schema that holds the columns of all, in the order that they turn up.

    Raises
    ------
    NeuroLensError
        When a column is text here and a number there.
    """
    try:
        return pa.unify_schemas(list(schemas), promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise NeuroLensError(
            f"the labels of two batches do not go together ({error}); "
            "give each column values of one kind in all batches"
        ) from None


def joined(tables: Iterable[pa.Table]) -> pa.Table:
    """Return the rows of all tables under their unified schema."""
    tables = list(tables)
    schema = unified(table.schema for table in tables)
    return pa.concat_tables([_conform(table, schema) for table in tables]).combine_chunks()


def write_parquet(where: BinaryIO, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write tables as one file, in row groups that do not depend on how the rows were parted.

    Not more than one of the tables and a row group are in memory.
    """
    with pq.ParquetWriter(where, schema) as writer:
        waiting = schema.empty_table()
        for table in tables:
            waiting = pa.concat_tables([waiting, _conform(table, schema)])
            full = len(waiting) // GROUP_ROWS * GROUP_ROWS
            for start in range(0, full, GROUP_ROWS):
                writer.write_table(waiting.slice(start, GROUP_ROWS).combine_chunks())
            waiting = waiting.slice(full).combine_chunks()
        if len(waiting):
            writer.write_table(waiting)


def parquet_hash(table: pa.Table) -> str:
    """Return the hash of the file that the table is written as."""
    buffer = io.BytesIO()
    write_parquet(buffer, [table], table.schema)
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def read_whole(path: Path) -> pa.Table:
    """Return all rows of a file."""
    with pq.ParquetFile(path) as file:
        return file.read()


def read_schema(path: Path) -> pa.Schema:
    """Return the columns of a file."""
    with pq.ParquetFile(path) as file:
        return file.schema_arrow.remove_metadata()


def read_groups(path: Path) -> Iterator[pa.Table]:
    """Yield the row groups of a file."""
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            yield file.read_row_group(number)


def read_slice(path: Path, start: int, stop: int) -> pa.Table:
    """Return rows ``start`` to ``stop`` of a file, reading only the row groups they lie in."""
    first = start // GROUP_ROWS
    with pq.ParquetFile(path) as file:
        last = min(-(-stop // GROUP_ROWS), file.num_row_groups)
        groups = file.read_row_groups(list(range(first, last)))
    return groups.slice(start - first * GROUP_ROWS, stop - start)


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    if table.schema.equals(schema):
        return table
    together = pa.concat_tables([schema.empty_table(), table], promote_options="permissive")
    return together.select(schema.names).cast(schema)


def _plain(kind: Any) -> Any:
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    return pa.string() if pa.types.is_large_string(kind) else kind

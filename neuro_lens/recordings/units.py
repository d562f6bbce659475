"""The recorded units of a dataset, with what the recordings say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from torch_brain.datasets import Dataset

OF_THE_RECORDING = {
    "subject_id": "subject.id",
    "genotype": "subject.genotype",
    "cre_line": "subject.cre_line",
    "area": "device.target_area",
    "depth": "device.imaging_depth",
}


def unit_table(dataset: Dataset) -> pd.DataFrame:
    """Return a row per recorded unit.

    Parameters
    ----------
    dataset : torch_brain Dataset
        Of recordings with ``rois`` (calcium) or ``units`` (spikes).

    Returns
    -------
    DataFrame
        ``unit`` (its id), ``recording_id``, and as far as recordings say so ``subject_id``,
        ``genotype``, ``cre_line``, ``area``, ``depth`` (µm) and every further field of ``rois`` or
        ``units`` that has one value a unit, which goes before the recording's.
    """
    tables = []
    for rid in dataset.recording_ids:
        recording = dataset.get_recording(rid)
        kind = "rois" if recording.has_nested_attribute("rois") else "units"
        fields = getattr(recording, kind)
        own = {name: np.asarray(getattr(fields, name)) for name in fields.keys()}  # noqa: SIM118
        table = pd.DataFrame({k: v for k, v in own.items() if v.ndim == 1 and k != "id"})
        table.insert(0, "unit", own["id"].astype(str))
        table.insert(1, "recording_id", str(rid))
        for name, path in OF_THE_RECORDING.items():
            if name not in table and recording.has_nested_attribute(path):
                table[name] = recording.get_nested_attribute(path)
        if recording.has_nested_attribute("subject.animal"):  # its subject.id is a container
            table["subject_id"] = recording.subject.animal
        tables.append(table)
    return pd.concat(tables, ignore_index=True)

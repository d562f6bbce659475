"""Readouts: what POYO+ is asked for, and the linear heads that answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..base import NeuroLensError

Scale = tuple[Any, Any]
"""What is subtracted from a signal and what it is then divided by, one number or one a column."""


@dataclass(frozen=True)
class Readout:
    """One thing that a multi-task decoder can be asked for.

    Attributes
    ----------
    id : int
        Index of the task's embedding; 0 is padding.
    dim : int
        Number of classes, or of predicted values.
    kind : {"classification", "regression"}
    timestamp_key, value_key : str
        Where a recording holds the times (s) and values, such as
        ``drifting_gratings.orientation_id``.
    """

    id: int
    dim: int
    kind: Literal["classification", "regression"]
    timestamp_key: str
    value_key: str


def _published() -> dict[str, Readout]:
    rows = [
        ("cursor_velocity_2d", 2, "cursor", "vel"),
        ("cursor_position_2d", 2, "cursor", "pos"),
        ("arm_velocity_2d", 2, "behavior", "hand_vel"),
        ("drifting_gratings_orientation", 8, "drifting_gratings", "orientation_id"),
        ("drifting_gratings_temporal_frequency", 5, "drifting_gratings", "temporal_frequency_id"),
        ("natural_movie_one_frame", 900, "natural_movie_one", "frame"),
        ("natural_movie_two_frame", 900, "natural_movie_two", "frame"),
        ("natural_movie_three_frame", 3600, "natural_movie_three", "frame"),
        ("locally_sparse_noise_frame", 8000, "locally_sparse_noise", "frame"),
        ("static_gratings_orientation", 6, "static_gratings", "orientation_id"),
        ("static_gratings_spatial_frequency", 5, "static_gratings", "spatial_frequency_id"),
        ("static_gratings_phase", 5, "static_gratings", "phase_id"),
        ("natural_scenes", 119, "natural_scenes", "frame"),
        ("gabor_orientation", 4, "gabors", "gabors_orientation"),
        ("gabor_pos_2d", 2, "gabors", "pos_2d"),
        ("running_speed", 1, "running", "running_speed"),
        ("gaze_pos_2d", 2, "gaze", "pos_2d"),
        ("pupil_location", 2, "pupil", "location"),
        ("pupil_size_2d", 2, "pupil", "size_2d"),
    ]
    continuous = {"cursor", "behavior", "running", "gaze", "pupil"}
    return {
        name: Readout(
            id=i,
            dim=dim,
            kind=(
                "regression" if field in continuous or name == "gabor_pos_2d" else "classification"
            ),
            timestamp_key=f"{field}.timestamps",
            value_key=f"{field}.{value}",
        )
        for i, (name, dim, field, value) in enumerate(rows, start=1)
    }


PUBLISHED_READOUTS: dict[str, Readout] = _published()
"""The readouts of the published model, in its order: the order fixes the task embeddings."""


def target_values(name: str, spec: Readout, values: Any, scale: Scale | None = None) -> np.ndarray:
    """Return a recording's values of a task as the decoder is to give them.

    Parameters
    ----------
    name : str
        Of the task, for what is said when its values do not fit.
    spec : Readout
    values : array, shape (n,) or (n, n_columns)
    scale : (mean, standard deviation), optional
        Of a signal.

    Returns
    -------
    array
        int64 (classification) or float32.

    Raises
    ------
    NeuroLensError
        For values beyond the readout's classes.
    """
    values = np.asarray(values)
    if spec.kind == "regression":
        if scale is not None:
            values = (values - np.asarray(scale[0])) / np.asarray(scale[1])
        return values.astype(np.float32)
    values = values.astype(np.int64)
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high >= spec.dim:
        raise NeuroLensError(
            f"{spec.value_key} holds {low if low < 0 else high}, and the readout {name!r} has the "
            f"classes 0 to {spec.dim - 1}; ask for other tasks (tasks=), or give it more classes"
        )
    return values


class MultitaskReadout(nn.Module):
    """One linear head a task, applied to the output positions that ask for it.

    Parameters
    ----------
    dim : int
        Width of the output embeddings.
    readout_specs : mapping of str to Readout
    """

    def __init__(self, dim: int, readout_specs: Mapping[str, Readout]):
        super().__init__()
        self.readout_specs = dict(readout_specs)
        self.projections = nn.ModuleDict(
            {name: nn.Linear(dim, spec.dim) for name, spec in self.readout_specs.items()}
        )
        self._readout_id_to_name = {spec.id: name for name, spec in self.readout_specs.items()}

    def forward(
        self, output_embs: Tensor, output_readout_index: Tensor, unpack_output: bool = False
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Project each output position by its task's head.

        Parameters
        ----------
        output_embs : Tensor, shape (n_windows, n_outputs, dim)
        output_readout_index : Tensor of int, shape (n_windows, n_outputs)
            Task of each position; ids of no known task are padding.
        unpack_output : bool
            Give a dict a window instead of one for all.

        Returns
        -------
        dict of str to Tensor, shape (n_rows, readout.dim)
            Rows in the order of windows, then positions; a list of such dicts, one a window,
            with ``unpack_output``.
        """
        outputs: dict[str, Tensor] = {}
        windows: dict[str, Tensor] = {}
        for readout_id in output_readout_index.unique().tolist():
            name = self._readout_id_to_name.get(readout_id)
            if name is None:
                continue
            mask = output_readout_index == readout_id
            outputs[name] = self.projections[name](output_embs[mask])
            windows[name] = torch.nonzero(mask)[:, 0]
        if not unpack_output:
            return outputs
        return [
            {
                name: rows[windows[name] == i]
                for name, rows in outputs.items()
                if (windows[name] == i).any()
            }
            for i in range(len(output_embs))
        ]

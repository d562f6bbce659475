"""SpikePOYO: torch_brain's own POYO for spike trains, with a slice of its readout for each task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor
from torch_brain.models import POYO

from ..base import NeuroLensError
from .calcium_poyo_plus import fresh_copy, give_vocabularies, token_indices
from .readouts import Readout, target_values


class SpikePOYO(POYO):  # type: ignore[misc]
    """torch_brain's POYO, asked for several things at once, and saved like our other decoders.

    Every spike is a token, and every unit has a token for the start and one for the end of the
    window. POYO has one linear readout and no embedding of tasks: its outputs are dealt to the
    tasks in the order of their ids, and each query answers all of them, so all tasks share their
    times. One decoder then reads all of them from the same latents, and removing a feature can be
    compared between tasks. Parameters are POYO's own in name and shape (Azabou et al. 2023,
    arXiv 2310.16046), so that weights of a POYO of as many outputs load.

    Parameters
    ----------
    readout_specs : mapping of str to Readout
        The tasks; each of its own ``id``, all of one ``timestamp_key``.
    **arguments
        Those of `torch_brain.models.POYO` but ``dim_out``, which is the sum of the tasks'.

    Raises
    ------
    NeuroLensError
        Without a task, and for tasks of one id or at different times.
    """

    def __init__(
        self, *, readout_specs: Mapping[str, Readout | Mapping[str, Any]], **arguments: Any
    ):
        given = {
            name: spec if isinstance(spec, Readout) else Readout(**spec)
            for name, spec in readout_specs.items()
        }
        specs = dict(sorted(given.items(), key=lambda item: item[1].id))
        keys = {spec.timestamp_key for spec in specs.values()}
        ids = [spec.id for spec in specs.values()]
        if len(keys) != 1 or len(set(ids)) < len(ids):
            raise NeuroLensError(
                f"a POYO answers all its tasks at each query, in the order of their ids, and tasks "
                f"with the ids {ids} and times in {', '.join(sorted(keys)) or 'nothing'} were "
                "given; give tasks of one timestamp_key, each with an id of its own"
            )
        super().__init__(dim_out=sum(spec.dim for spec in specs.values()), **arguments)
        self.arguments: dict[str, Any] = {
            "readout_specs": {name: asdict(spec) for name, spec in specs.items()},
            **arguments,
        }
        self.readout_specs = specs
        self.timestamp_key = keys.pop()

    def forward(
        self, *, output_mask: Tensor, unpack_output: bool = False, **inputs: Tensor
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Decode a batch of windows.

        Parameters
        ----------
        output_mask : Tensor of bool, shape (n_windows, n_outputs)
            False where a query is padding.
        unpack_output : bool
            Give a dict a window.
        **inputs
            As `torch_brain.models.POYO.forward`.

        Returns
        -------
        dict of str to Tensor, shape (n_rows, readout.dim)
            Rows in the order of windows, then positions; a list of such dicts, one a window,
            with ``unpack_output``.
        """
        output = super().forward(output_mask=output_mask, **inputs)
        if unpack_output:
            return [self._by_task(o[m]) for o, m in zip(output, output_mask, strict=True)]
        return self._by_task(output[output_mask])

    def _by_task(self, rows: Tensor) -> dict[str, Tensor]:
        sizes = [spec.dim for spec in self.readout_specs.values()]
        return dict(zip(self.readout_specs, rows.split(sizes, dim=-1), strict=True))

    @classmethod
    def load_pretrained(cls, checkpoint_path: Any) -> SpikePOYO:
        """Refuse: a checkpoint does not say which outputs are whose, see `load_checkpoint`.

        Raises
        ------
        NeuroLensError
            Always.
        """
        raise NeuroLensError(
            f"{checkpoint_path} does not say which tasks its outputs are of; build a SpikePOYO "
            "with readout_specs and the checkpoint's sizes and give both to load_checkpoint"
        )

    @staticmethod
    def unit_ids(recording: Any) -> list[str]:
        """Return the ids of a recording's units, in their order."""
        return np.asarray(recording.units.id).astype(str).tolist()

    def init_vocabs(self, dataset: Any) -> None:
        """Give every unit and recording of a torch_brain Dataset an embedding."""
        give_vocabularies(self, dataset)

    def fresh(self, seed: int = 0) -> SpikePOYO:
        """Return a decoder of the same arguments and vocabularies with new random weights."""
        return fresh_copy(self, seed)

    def tokenize(self, data: Any) -> dict[str, Any]:
        """Turn one window of a recording into the decoder's inputs and targets.

        Parameters
        ----------
        data : torch_brain Data
            With ``spikes`` (``timestamps``, ``unit_index``), ``units.id``, ``session.id`` and the
            fields of all tasks.

        Returns
        -------
        dict
            ``model_inputs`` (padding marked for ``torch_brain.batching.collate``) and
            ``target_values``, an array a task.

        Raises
        ------
        NeuroLensError
            For a recording without spikes or without a task's field, for a unit or recording
            that has no embedding, and for values beyond a readout's classes.
        """
        from torch_brain.batching import chain, pad, pad8, track_mask

        needed = ["spikes.timestamps", "spikes.unit_index", "units.id", self.timestamp_key]
        needed += [spec.value_key for spec in self.readout_specs.values()]
        absent = [key for key in needed if not data.has_nested_attribute(key)]
        if absent:
            raise NeuroLensError(
                f"recording {str(data.session.id)!r} lacks {', '.join(absent)}, which a decoder of "
                "spikes reads; give recordings with spikes, units and all tasks' fields"
            )
        token_indices(self.unit_emb, self.unit_ids(data))
        token_indices(self.session_emb, [str(data.session.id)])
        inputs = super().tokenize(data)
        times = np.asarray(data.get_nested_attribute(self.timestamp_key)).astype(np.float32)
        inputs["input_timestamps"] = pad8(inputs["input_timestamps"].obj.astype(np.float32))
        latents = inputs["latent_timestamps"]  # by rounding also beyond the end: 0.2 - 0.05 > 0.15
        inside = latents - self.latent_step / 2 < self.sequence_length - 1e-9
        inputs["latent_timestamps"] = latents[inside].astype(np.float32)
        inputs["latent_index"] = inputs["latent_index"][inside]
        inputs |= {"output_timestamps": pad(times), "output_mask": track_mask(times)}
        targets = {}
        for name, spec in self.readout_specs.items():
            targets[name] = target_values(name, spec, data.get_nested_attribute(spec.value_key))
        return {"model_inputs": inputs, "target_values": chain(targets, allow_missing_keys=True)}

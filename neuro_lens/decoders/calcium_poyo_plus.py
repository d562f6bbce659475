"""CalciumPOYOPlus: POYO+ for calcium traces on torch_brain's blocks, weights as published."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..base import NeuroLensError
from ._torch_brain import torch_brain_blocks
from .readouts import PUBLISHED_READOUTS, MultitaskReadout, Readout, Scale, target_values


class CalciumPOYOPlus(nn.Module):
    """A transformer that decodes many tasks from calcium traces of many recordings.

    Every (sample, unit) is a token: its value beside the unit's embedding. Latent tokens on a
    time grid read the tokens by cross-attention, pass through self-attention layers, and are
    read by one query a (task, time). Parameter names are those of the published model
    (Azabou et al. 2025, ICLR), so that its weights load.

    Parameters
    ----------
    sequence_length : float
        Length of a window in seconds.
    latent_step : float
        Time between latents in seconds.
    num_latents_per_step : int
        Latents at each time of the grid.
    readout_specs : mapping of str to Readout
        The tasks; default the published ones.
    dim, depth, dim_head, cross_heads, self_heads : int
        Width, number of self-attention layers, width of a head, heads of the two
        cross-attentions and of each self-attention.
    ffn_dropout, lin_dropout, atn_dropout : float
        Dropout in feed-forward networks, on branches, and of attention.
    emb_init_scale : float
        Standard deviation of initial embeddings.
    t_min, t_max : float
        Shortest and longest period of the rotary time embedding in seconds.
    pool : int
        Consecutive samples averaged into one token.
    fixed_scales : mapping of str to (mean, standard deviation), optional
        For a decoder that reads traces as they are, dF/F, and whose signals are scaled alike in
        all recordings: by task what is subtracted and divided by, one number or one a column; a
        signal that it lacks stays as it is. None for one whose traces and signals are z-scored
        over each recording's fit part. `stream_windows` follows it.
    """

    unit_emb: Any
    session_emb: Any
    proc_layers: Any
    readout: MultitaskReadout

    def __init__(
        self,
        *,
        sequence_length: float,
        latent_step: float,
        num_latents_per_step: int = 64,
        readout_specs: Mapping[str, Readout | Mapping[str, Any]] = PUBLISHED_READOUTS,
        dim: int = 512,
        depth: int = 2,
        dim_head: int = 64,
        cross_heads: int = 1,
        self_heads: int = 8,
        ffn_dropout: float = 0.2,
        lin_dropout: float = 0.4,
        atn_dropout: float = 0.0,
        emb_init_scale: float = 0.02,
        t_min: float = 1e-4,
        t_max: float = 2.0627,
        pool: int = 1,
        fixed_scales: Mapping[str, Scale] | None = None,
    ):
        super().__init__()
        specs = {
            name: spec if isinstance(spec, Readout) else Readout(**spec)
            for name, spec in readout_specs.items()
        }
        _check(sequence_length=sequence_length, latent_step=latent_step, pool=pool)
        self.arguments: dict[str, Any] = {
            "sequence_length": sequence_length,
            "latent_step": latent_step,
            "num_latents_per_step": num_latents_per_step,
            "readout_specs": {name: asdict(spec) for name, spec in specs.items()},
            "dim": dim,
            "depth": depth,
            "dim_head": dim_head,
            "cross_heads": cross_heads,
            "self_heads": self_heads,
            "ffn_dropout": ffn_dropout,
            "lin_dropout": lin_dropout,
            "atn_dropout": atn_dropout,
            "emb_init_scale": emb_init_scale,
            "t_min": t_min,
            "t_max": t_max,
            "pool": pool,
        }
        if fixed_scales is not None:
            scales = {n: [np.asarray(x).tolist() for x in s] for n, s in fixed_scales.items()}
            self.arguments["fixed_scales"] = scales
        self.sequence_length = sequence_length
        self.latent_step = latent_step
        self.num_latents_per_step = num_latents_per_step
        self.readout_specs = specs
        self.pool = pool
        self.fixed_scales: Mapping[str, Scale] | None = self.arguments.get("fixed_scales")
        blocks = torch_brain_blocks()

        def embedding(n: int) -> nn.Embedding:
            table = nn.Embedding(n, dim)
            nn.init.normal_(table.weight, std=emb_init_scale)
            return table

        def feed_forward() -> nn.Sequential:
            return nn.Sequential(
                nn.LayerNorm(dim), blocks.FeedForward(dim=dim, dropout=ffn_dropout)
            )

        attention = {"dim": dim, "dropout": atn_dropout, "dim_head": dim_head}
        self.input_value_map = nn.Linear(1, dim // 2)
        nn.init.trunc_normal_(self.input_value_map.weight, 0, emb_init_scale)
        nn.init.zeros_(self.input_value_map.bias)
        self.unit_emb = blocks.InfiniteVocabEmbedding(dim // 2, init_scale=emb_init_scale)
        self.session_emb = blocks.InfiniteVocabEmbedding(dim, init_scale=emb_init_scale)
        self.token_type_emb = embedding(4)
        self.task_emb = embedding(max((s.id for s in specs.values()), default=0) + 1)
        self.latent_emb = embedding(num_latents_per_step)
        self.rotary_emb = blocks.RotaryTimeEmbedding(
            head_dim=dim_head, rotate_dim=dim_head // 2, t_min=t_min, t_max=t_max
        )
        self.dropout = nn.Dropout(p=lin_dropout)
        self.enc_atn = blocks.RotaryCrossAttention(
            heads=cross_heads, rotate_value=True, **attention
        )
        self.enc_ffn = feed_forward()
        self.proc_layers = nn.ModuleList(
            nn.Sequential(
                blocks.RotarySelfAttention(heads=self_heads, rotate_value=True, **attention),
                feed_forward(),
            )
            for _ in range(depth)
        )
        self.dec_atn = blocks.RotaryCrossAttention(
            heads=cross_heads, rotate_value=False, **attention
        )
        self.dec_ffn = feed_forward()
        self.readout = MultitaskReadout(dim, specs)
        self.dim = dim

    def forward(
        self,
        *,
        input_unit_index: Tensor,
        input_timestamps: Tensor,
        input_values: Tensor,
        input_mask: Tensor | None = None,
        latent_index: Tensor,
        latent_timestamps: Tensor,
        output_session_index: Tensor,
        output_timestamps: Tensor,
        output_decoder_index: Tensor,
        unpack_output: bool = False,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Decode a batch of windows.

        Parameters
        ----------
        input_unit_index, input_timestamps : Tensor, shape (n_windows, n_inputs)
            Unit and time (s from the window's start) of each token.
        input_values : Tensor, shape (n_windows, n_inputs, 1)
        input_mask : Tensor of bool, shape (n_windows, n_inputs), optional
            False where a token is padding.
        latent_index, latent_timestamps : Tensor, shape (n_windows, n_latents)
        output_session_index, output_timestamps, output_decoder_index : Tensor
            Recording, time and task of each query, shape (n_windows, n_outputs).
        unpack_output : bool
            Give a dict a window.

        Returns
        -------
        dict of str to Tensor, shape (n_rows, readout.dim)
            See `MultitaskReadout`.

        Raises
        ------
        NeuroLensError
            When a vocabulary has not been initialised.
        """
        for name, table in (("unit", self.unit_emb), ("session", self.session_emb)):
            if table.is_lazy():
                raise NeuroLensError(
                    f"the decoder has no {name} vocabulary; call decoder.init_vocabs(dataset)"
                )
        inputs = torch.cat(
            (self.input_value_map(input_values), self.unit_emb(input_unit_index)), dim=-1
        )
        input_rotary = self.rotary_emb(input_timestamps)
        latents = self.latent_emb(latent_index)
        latent_rotary = self.rotary_emb(latent_timestamps)
        queries = self.session_emb(output_session_index) + self.task_emb(output_decoder_index)
        output_rotary = self.rotary_emb(output_timestamps)

        latents = latents + self.enc_atn(latents, inputs, latent_rotary, input_rotary, input_mask)
        latents = latents + self.enc_ffn(latents)
        for self_atn, self_ffn in self.proc_layers:
            latents = latents + self.dropout(self_atn(latents, latent_rotary))
            latents = latents + self.dropout(self_ffn(latents))
        queries = queries + self.dec_atn(queries, latents, output_rotary, latent_rotary)
        queries = queries + self.dec_ffn(queries)
        return self.readout(
            output_embs=queries,
            output_readout_index=output_decoder_index,
            unpack_output=unpack_output,
        )

    def init_vocabs(self, dataset: Any) -> None:
        """Give every unit and recording of a torch_brain Dataset an embedding."""
        give_vocabularies(self, dataset)

    @staticmethod
    def unit_ids(recording: Any) -> list[str]:
        """Return the ids of a recording's units, in their order."""
        return np.asarray(recording.rois.id).astype(str).tolist()

    def fresh(self, seed: int = 0) -> CalciumPOYOPlus:
        """Return a decoder of the same arguments and vocabularies with new random weights."""
        return fresh_copy(self, seed)

    def tokenize(self, data: Any, tasks: Collection[str] | None = None) -> dict[str, Any]:
        """Turn one window of a recording into the decoder's inputs and targets.

        Parameters
        ----------
        data : torch_brain Data
            With ``calcium_traces.df_over_f`` ``(n_samples, n_units)``, ``rois.id`` and
            ``session.id``; every readout whose field it holds is asked for. Signals are scaled
            where the decoder has ``fixed_scales``; traces are taken as they are given.
        tasks : collection of str, optional
            Ask for no other readouts than these.

        Returns
        -------
        dict
            ``model_inputs`` (padding marked for ``torch_brain.batching.collate``) and
            ``target_values``, an array a task.

        Raises
        ------
        NeuroLensError
            For a unit or recording that has no embedding, and values beyond a readout's classes.
        """
        from torch_brain.batching import chain, pad, pad8, track_mask8

        traces = data.calcium_traces
        values_tu, times_t = pooled(
            np.asarray(traces.df_over_f), np.asarray(traces.timestamps), self.pool
        )
        unit_index = np.asarray(token_indices(self.unit_emb, np.asarray(data.rois.id).astype(str)))
        n_times, n_units = values_tu.shape
        tokens = np.tile(unit_index, n_times)
        times, asked, targets = self._queries(data, self.readout_specs if tasks is None else tasks)
        grid = np.arange(0, self.sequence_length - 1e-9, self.latent_step) + self.latent_step / 2
        latents = np.arange(self.num_latents_per_step)
        (session,) = token_indices(self.session_emb, [str(data.session.id)])
        return {
            "model_inputs": {
                "input_unit_index": pad8(tokens),
                "input_timestamps": pad8(np.repeat(times_t, n_units).astype(np.float32)),
                "input_values": pad8(values_tu.reshape(-1, 1).astype(np.float32)),
                "input_mask": track_mask8(tokens),
                "latent_index": np.tile(latents, len(grid)),
                "latent_timestamps": np.repeat(grid, len(latents)).astype(np.float32),
                "output_session_index": pad(np.full(len(times), session)),
                "output_timestamps": pad(times.astype(np.float32)),
                "output_decoder_index": pad(asked),
            },
            "target_values": chain(targets, allow_missing_keys=True),
        }

    def _queries(
        self, data: Any, wanted: Collection[str]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        times, tasks, targets = [], [], {}
        for name, spec in self.readout_specs.items():
            if not (
                name in wanted
                and data.has_nested_attribute(spec.value_key)
                and data.has_nested_attribute(spec.timestamp_key)
            ):
                continue
            when = np.asarray(data.get_nested_attribute(spec.timestamp_key))
            if len(when) == 0:
                continue
            scale = (self.fixed_scales or {}).get(name)
            value = data.get_nested_attribute(spec.value_key)
            targets[name] = target_values(name, spec, value, scale)
            times.append(when)
            tasks.append(np.full(len(when), spec.id))
        if not times:
            return np.zeros(0), np.zeros(0, dtype=np.int64), {}
        return np.concatenate(times), np.concatenate(tasks), targets


def give_vocabularies(decoder: Any, dataset: Any) -> None:
    """Give every unit and recording of a torch_brain Dataset an embedding in a new decoder."""
    if not decoder.unit_emb.is_lazy():
        raise NeuroLensError(
            "the decoder has its vocabularies already; add_recordings adds to them"
        )
    for name, words in vocabularies(decoder, dataset).items():
        getattr(decoder, name).initialize_vocab(words)


def vocabularies(decoder: Any, dataset: Any) -> dict[str, list[str]]:
    """Return the words of a Dataset's units and recordings, by the name of their embedding."""
    units, names = [], []
    for recording in map(dataset.get_recording, dataset.recording_ids):  # one open at a time
        units += decoder.unit_ids(recording)
        names.append(str(recording.session.id))
    return {"unit_emb": sorted(units), "session_emb": names}


def fresh_copy(decoder: Any, seed: int) -> Any:
    """Return a decoder of the same arguments and vocabularies with new random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        other = type(decoder)(**decoder.arguments)
        for name in ("unit_emb", "session_emb"):
            words = [w for w in getattr(decoder, name).vocab if w != "NA"]
            getattr(other, name).initialize_vocab(words)
    return other.train(decoder.training).to(next(decoder.parameters()).device)


def token_indices(table: Any, words: Sequence[str] | np.ndarray) -> list[int]:
    """Return the rows of units or recordings in their embedding."""
    if table.is_lazy():
        raise NeuroLensError("the decoder has no vocabularies; call decoder.init_vocabs(dataset)")
    unknown = [str(word) for word in words if word not in table.vocab]
    if unknown:
        raise NeuroLensError(
            f"the decoder does not know {unknown[0]!r} and {len(unknown) - 1} more; give "
            "recordings that it was trained on, or add_recordings first"
        )
    return [table.vocab[word] for word in words]


def pooled(values: np.ndarray, times: np.ndarray, pool: int) -> tuple[np.ndarray, np.ndarray]:
    """Average every ``pool`` consecutive samples of ``(n_samples, n_units)`` and their times."""
    n = len(values) // pool
    if n == 0:
        raise NeuroLensError(
            f"a window of {len(values)} samples cannot be pooled by {pool}; "
            "take a longer window or a smaller pool"
        )
    values = values[: n * pool].reshape(n, pool, -1).mean(1)
    return values, times[: n * pool].reshape(n, pool).mean(1)


def _check(sequence_length: float, latent_step: float, pool: int) -> None:
    if not sequence_length > 0 or not 0 < latent_step <= sequence_length:
        raise NeuroLensError(
            f"sequence_length {sequence_length} s and latent_step {latent_step} s do not fit; "
            "both must be positive and a step no longer than the sequence"
        )
    if pool < 1:
        raise NeuroLensError(f"pool is {pool}; it must be 1 or more samples a token")

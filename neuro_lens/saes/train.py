"""train_sae and train_bank: sparse dictionaries of a hook point's activations, trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor

from neuro_lens.activations import ActivationStore
from neuro_lens.base import NeuroLensError, check_choice, refuse_foreign, write_table

from .files import CONFIG
from .source import Acts

if TYPE_CHECKING:
    from sae_lens import SAE

    from .bank import Bank
    from .fitting import Member
    from .logs import Log
    from .running import Runner

ARCHITECTURES = ("batchtopk", "topk", "standard", "jumprelu", "gated", "matryoshka")
BUFFER = 2**19
CHECKPOINT_EVERY = 500


def train_sae(
    acts: Acts,
    architecture: str = "batchtopk",
    d_sae: int = 512,
    k: float = 8,
    *,
    steps: int = 2000,
    batch_size: int = 512,
    lr: float = 3e-3,
    seed: int = 0,
    out: str | Path | None = None,
    **options: Any,
) -> SAE:
    """Train a sparse autoencoder on activations and return it in its inference form.

    Whatever the architecture, ``k`` is the number of features that are to fire per vector:
    topk holds it exactly, batchtopk and matryoshka through a threshold that is calibrated on
    held-out activations, standard, gated and jumprelu through a sparsity penalty that is steered
    towards it. The SAE takes and returns raw activations (scaling is folded into the weights),
    its decoder rows have norm 1, and it is a plain sae-lens one: batchtopk and matryoshka are
    saved as jumprelu.

    Parameters
    ----------
    acts : ActivationStore, Tensor of shape (n, d_in), or iterable of these vectors in chunks
        Of a store with splits only the ``fit`` vectors are used.
    architecture : str
        ``batchtopk``, ``topk``, ``standard``, ``jumprelu``, ``gated`` or ``matryoshka``.
    d_sae : int
        Number of features.
    k : float
        Features that fire per vector, on average.
    steps, batch_size
        Number of optimiser steps, and of vectors in each.
    lr : float
        Peak learning rate of Adam, after warm-up and before decay.
    seed : int
        Determines weights and order: one seed gives one SAE on one machine.
    out : path, optional
        Folder to save the SAE in, as ``sae_lens.SAE.load_from_disk`` and :func:`load_sae` read
        it.
    **options
        ``validation``, ``checkpoint``, ``checkpoint_every``, ``log``, ``device`` and ``buffer``
        of :func:`train_bank`.

    Returns
    -------
    sae_lens.SAE
        With ``hook_name``, ``decoder_hash``, ``store_hash``, ``seed``, ``architecture``, ``k``
        and ``neuro_lens_version`` in ``cfg.metadata``.

    Raises
    ------
    NeuroLensError
        For an unknown architecture, an impossible size, activations that are not finite or all
        the same, a store without fit vectors, or a training that diverges.
    """
    if out is not None:
        refuse_foreign(out, CONFIG, "SAE")
    runner = _runner(architecture, steps, batch_size, lr, **options)
    return runner.train(acts, [_member(architecture, d_sae, k, seed)], lambda member: out)[0][0]


def train_bank(
    acts: Acts | Mapping[str, Acts],
    architecture: str = "batchtopk",
    d_sae: int | Sequence[int] = 512,
    k: float | Sequence[float] = 8,
    seeds: int | Sequence[int] = 0,
    *,
    steps: int = 2000,
    batch_size: int = 512,
    lr: float = 3e-3,
    out: str | Path | None = None,
    validation: ActivationStore | Tensor | Mapping[str, ActivationStore | Tensor] | None = None,
    **options: Any,
) -> Bank:
    """Train an SAE for every width, ``k`` and seed together, from one pass over the activations.

    Each is the one that :func:`train_sae` gives, up to rounding. topk, batchtopk and matryoshka
    SAEs are computed side by side; the others one after another in each step.

    Parameters
    ----------
    acts : as for train_sae, or mapping of str to these
        A mapping, such as `harvest` gives for several hooks, trains all SAEs on each.
    architecture : str
        As for :func:`train_sae`.
    d_sae, k, seeds : number or sequence of numbers
        Every combination is trained.
    steps, batch_size, lr
        As for :func:`train_sae`, of each SAE.
    out : path, optional
        Folder that gets an SAE folder each (``d512_k8_seed0``; of several hooks below a folder a
        hook), and the tables ``bank`` and ``history`` as Parquet and CSV.
    validation : ActivationStore or Tensor of shape (n, d_in), optional
        Vectors that are not trained on, such as other recordings', on which the tables measure;
        by default the windows that are held out for calibration. A mapping where ``acts`` is one.
    **options
        - ``checkpoint``: folder to write checkpoints into, every ``checkpoint_every`` (500)
          steps; the same call goes on from there to the same bits
        - ``log``: function of a row of the history, ``"tensorboard"`` or ``"wandb"``
        - ``device``: by default CUDA where there is one
        - ``buffer``: vectors to keep in memory of a stored store, or an iterable, that holds
          more; each step replaces as many as it drew
        - ``memory``: bytes that SAEs in training may take, by default half of what is free; a
          larger bank is trained in groups, each with a pass of its own

    Returns
    -------
    Bank
        ``saes``, ``table`` and ``history``.

    Raises
    ------
    NeuroLensError
        As :func:`train_sae` does.
    """
    from .bank import Bank

    members = [
        _member(architecture, width, number, seed)
        for width in _listed(d_sae)
        for number in _listed(k)
        for seed in _listed(seeds)
    ]
    if not members or len(set(members)) < len(members):
        raise NeuroLensError(
            f"d_sae, k and seeds give {len(members)} SAEs, {len(set(members))} of them different; "
            "give each at least one value, and none twice"
        )
    if out is not None:
        refuse_foreign(out, "bank.parquet", "bank")
    saes, tables, histories = [], [], []
    for hook, given in (acts if isinstance(acts, Mapping) else {"": acts}).items():
        held = validation.get(hook) if isinstance(validation, Mapping) else validation
        runner = _runner(architecture, steps, batch_size, lr, validation=held, **options)
        found, table, history = runner.train(given, members, _below(out, hook))
        saes += found
        tables.append(table)
        histories.append(history)
    bank = Bank(saes, *(pd.concat(parts, ignore_index=True) for parts in (tables, histories)))
    if out is not None:
        write_table(bank.history, out, "history")
        write_table(bank.table, out, "bank")
    return bank


def _runner(
    architecture: str,
    steps: int,
    batch_size: int,
    lr: float,
    *,
    validation: ActivationStore | Tensor | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = CHECKPOINT_EVERY,
    log: Log | str | None = None,
    device: str | None = None,
    buffer: int = BUFFER,
    memory: float | None = None,
) -> Runner:
    """Return what trains, its settings checked."""
    check_choice("architecture", architecture, ARCHITECTURES)
    whole = {"steps": steps, "batch_size": batch_size, "buffer": buffer}
    for name, value in {**whole, "checkpoint_every": checkpoint_every}.items():
        _check_whole(name, value, 1)
    if not lr > 0:
        raise NeuroLensError(f"lr is {lr!r}; it must be above 0")
    from .fitting import Schedule
    from .running import Runner

    return Runner(
        architecture,
        Schedule(int(steps), int(batch_size), float(lr)),  # numpy's numbers are none of JSON's
        validation=validation,
        checkpoint=checkpoint,
        checkpoint_every=int(checkpoint_every),
        log=log,
        device=device,
        buffer=int(buffer),
        memory=memory,
    )


def _member(architecture: str, d_sae: int, k: float, seed: int) -> Member:
    _check_whole("seed", seed, 0)
    _check_whole("d_sae", d_sae, 1)
    if not 1 <= k <= d_sae:
        raise NeuroLensError(
            f"k is {k!r} and d_sae {d_sae}; k, the features that fire per vector, must lie "
            "between 1 and d_sae"
        )
    if architecture == "topk" and k != int(k):
        raise NeuroLensError(f"k is {k!r}; topk needs a whole number (batchtopk takes any)")
    from .fitting import Member

    return Member(int(d_sae), int(k) if k == int(k) else float(k), int(seed))


def _below(out: str | Path | None, hook: str) -> Callable[[Member], Path | None]:
    return lambda member: None if out is None else Path(out) / hook / member.name


def _check_whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, Integral) or value < least:
        raise NeuroLensError(f"{name} is {value!r}; it must be a whole number, {least} or more")


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, Iterable) else [values]

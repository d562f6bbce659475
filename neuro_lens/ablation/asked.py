"""What a study was asked for: its groups of features, their variable, and the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..base import Batch, NeuroLensError, Task
from ..tuning.variables import NOT_VARIABLES
from .trials import check_task


def check_sae(
    hooked: Any,
    sae: Any,
    hook: str | None,
    groups: Mapping[Any, Sequence[int]],
    allow_other_decoder: bool,
) -> str:
    """Return the hook, once the SAE and its features are known to fit there."""
    for value, group in groups.items():
        _check_features(value, group)
    features = sorted({int(f) for group in groups.values() for f in group})
    with hooked.ablate(sae, features, hook=hook, allow_other_decoder=allow_other_decoder):
        pass
    return hook or sae.cfg.metadata.hook_name


def _check_features(value: Any, features: Sequence[int]) -> None:
    wrong = [f for f in features if isinstance(f, bool) or not isinstance(f, int | np.integer)]
    if wrong:
        raise NeuroLensError(
            f"the group of {value!r} has {wrong[0]!r}, and features are whole numbers from 0"
        )
    twice = [f for i, f in enumerate(features) if f in features[:i]]
    if twice:
        raise NeuroLensError(
            f"the group of {value!r} has feature {twice[0]} twice; name each feature once"
        )


def check_groups(groups: Mapping[Any, Sequence[int]]) -> None:
    """Raise for groups without a feature."""
    if not groups:
        raise NeuroLensError("groups is empty; give the features of at least one value")
    for value, features in groups.items():
        if len(features) == 0:
            raise NeuroLensError(f"the group of {value!r} has no feature; leave it out")


def find_groups_variable(batches: Sequence[Batch], groups: Mapping[Any, Sequence[int]]) -> str:
    """Return the label whose values the groups name."""
    labels = pd.concat([b.labels for b in batches], ignore_index=True)
    known = {c: set(labels[c].dropna().unique()) for c in labels.columns if c not in NOT_VARIABLES}
    wanted = set(groups)
    for fits in (lambda v: v == wanted, lambda v: wanted <= v):
        found = [c for c, values in known.items() if fits(values)]
        if len(found) == 1:
            return found[0]
        if found:
            raise NeuroLensError(
                f"the groups' values fit {' and '.join(found)}; say which with variable="
            )
    raise NeuroLensError(
        f"no label has the values {sorted(wanted)[:4]} that the groups name; the labels are "
        f"{', '.join(known)}; give batches of the trials that the features were chosen for"
    )


def find_classification(hooked: Any, batches: Sequence[Batch], task: str | None) -> Task:
    """Return the task of that name, or the one classification that the batches have targets of."""
    if task is not None:
        return check_task(hooked, task)
    given = {name for batch in batches for name in batch.targets}
    found = [t for n, t in hooked.tasks.items() if n in given and t.kind == "classification"]
    if len(found) != 1:
        names = ", ".join(t.name for t in found) or "none"
        raise NeuroLensError(
            f"an ablation study scores one classification, and the batches have targets of "
            f"{names}; name it with task="
        )
    return found[0]

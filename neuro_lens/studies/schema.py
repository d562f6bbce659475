"""The study: its fields and their defaults."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1, strict=True)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Verb = Literal[
    "doses", "sufficiency", "probe", "over_time", "units", "search", "dissociation"
]  # fmt: skip
Architecture = Literal["batchtopk", "topk", "standard", "jumprelu", "gated", "matryoshka"]


def _refuse_twice(name: str, given: Sequence[str]) -> None:
    if len(set(given)) < len(given):
        raise ValueError(f"has {name} {list(given)}, but each may stand there only once")


class _Fields(BaseModel):
    """Fields of a study file; others are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Recordings(_Fields):
    """Where the recordings come from and how they are cut into windows.

    Attributes
    ----------
    source : str
        ``sur_v1``, ``allen_events``, ``steinmetz``, or a folder of torch_brain ``.h5`` files.
    simulate : dict, optional
        Arguments of `neuro_lens.recordings.simulate`, in place of ``source``.
    trials : str
        The Interval of the recordings that holds the trials.
    targets : list of str, optional
        Fields of the trials, whole numbers from 0, that the decoder is to tell; by default what
        the published decoder was asked of such trials.
    tasks : str
        ``trials``: the decoder is trained on its trials' windows alone. ``published``: on windows
        that follow one another, for every task of the published decoder that the recordings hold;
        recordings without such trials then take part in training and in the table ``multitask``.
    window : (float, float)
        Start and end of a window in seconds, relative to the start of its trial.
    before : (float, float), optional
        A window before the trial, decoded and tested in the same way; null where the recordings
        have no time between trials.
    normalise : str, optional
        ``fit``, ``block`` or null, see `neuro_lens.recordings.batches`.
    pool : int
        Consecutive samples averaged into one.
    """

    source: Name = "sur_v1"
    simulate: dict[str, Any] | None = None
    trials: Name = "drifting_gratings"
    targets: Annotated[list[Name], Field(min_length=1)] | None = None
    tasks: Literal["trials", "published"] = "trials"
    window: tuple[float, float] = (0.0, 2.0)
    before: tuple[float, float] | None = (-1.0, 0.0)
    normalise: Literal["fit", "block"] | None = "fit"
    pool: Count = 16

    @model_validator(mode="after")
    def _check(self) -> Recordings:
        if self.simulate is not None and "source" in self.model_fields_set:
            raise ValueError("holds both source and simulate, but one of them is expected")
        if self.tasks == "published" and (self.targets or self.normalise == "block"):
            raise ValueError(
                "has tasks: published, of which neither targets nor normalise: block can be; "
                "leave them out"
            )
        for name, window in (("window", self.window), ("before", self.before)):
            if window and window[1] <= window[0]:
                raise ValueError(
                    f"has {name} {list(window)}, but its end must come after its start"
                )
        return self


class Decoder(_Fields):
    """Shape of the decoder and how it is trained.

    Attributes
    ----------
    model : str
        ``calcium_poyo_plus``, of sampled values, or ``poyo``, torch_brain's own, of spikes: see
        `neuro_lens.decoders.CalciumPOYOPlus` and ``SpikePOYO``. Spikes are neither pooled, scaled,
        disturbed nor mixed.
    dim, depth, dim_head, cross_heads, self_heads, num_latents_per_step : int
        See `neuro_lens.decoders.CalciumPOYOPlus`.
    latent_step : float
        Time between latents in seconds.
    ffn_dropout, lin_dropout, atn_dropout : float
        Dropout in feed-forward networks, on branches, and of attention.
    emb_init_scale : float
        Standard deviation of initial embeddings; larger where pooled values are small.
    t_min, t_max : float
        Shortest and longest period of the time embedding in seconds.
    steps, batch_size : int
        Training steps and windows a step.
    lr, weight_decay : float
        AdamW's.
    unit_dropout : float
        Largest share of units left out of a training window.
    noise : float
        Standard deviation of the noise added to a training window, in standard deviations of
        the unit.
    mixup : float
        Windows are mixed with others of their recording, by shares from Beta(mixup, mixup).
    """

    model: Literal["calcium_poyo_plus", "poyo"] = "calcium_poyo_plus"
    dim: Count = 64
    depth: Count = 2
    dim_head: Count = 32
    cross_heads: Count = 4
    self_heads: Count = 4
    num_latents_per_step: Count = 8
    latent_step: Positive = 1.0
    ffn_dropout: Fraction = 0.0
    lin_dropout: Fraction = 0.4
    atn_dropout: Fraction = 0.0
    emb_init_scale: Positive = 0.02
    t_min: Positive = 0.1
    t_max: Positive = 8.0
    steps: Count = 1200
    batch_size: Count = 48
    lr: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    unit_dropout: Fraction = 0.7
    noise: Annotated[float, Field(ge=0)] = 0.3
    mixup: Annotated[float, Field(ge=0)] = 1.0


class Dictionary(_Fields):
    """The sparse autoencoders: one for each hook.

    Attributes
    ----------
    hooks : list of str
        Hook points; ``blocks.-1`` is the last block.
    architecture : str
        An architecture of `neuro_lens.train_sae`.
    d_sae, k, steps : int
        Number of features, features active at a position, training steps.
    """

    hooks: Annotated[list[Name], Field(min_length=1)] = [
        "blocks.-1.hook_resid_post",
        "dec.hook_resid_post",
    ]
    architecture: Architecture = "batchtopk"
    d_sae: Count = 256
    k: Count = 16
    steps: Count = 4000

    @model_validator(mode="after")
    def _check(self) -> Dictionary:
        if self.k > self.d_sae:
            raise ValueError(f"has k {self.k} of d_sae {self.d_sae} features; make k smaller")
        return self


class Tuning(_Fields):
    """Which variables the features are tested for.

    Attributes
    ----------
    variables : list of str
        Variables of the trials.
    alpha : float
        Level of the corrected p.
    permutations : int
        Most permutations of a test.
    between : list of str
        Variables of the animals, tested once over all splits of them.
    unseen : list of str
        Recordings that another decoder is trained without; only embeddings are then fitted to
        them, and ``between`` is predicted on their animals. It takes as long as another decoder
        and dictionary, and three animals or more of each group.
    """

    variables: Annotated[list[Name], Field(min_length=1)] = ["direction", "orientation"]
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    permutations: Count = 9999
    between: list[Name] = ["genotype"]
    unseen: list[Name] = []

    @model_validator(mode="after")
    def _check(self) -> Tuning:
        for name in ("variables", "between", "unseen"):
            _refuse_twice(name, getattr(self, name))
        return self


class Ablation(_Fields):
    """What is removed while the decoder decodes, and what that is compared with.

    Attributes
    ----------
    hook : str
        One of the hooks that have an SAE.
    variable : str
        The variable whose features are removed, one of the tuning's variables.
    n_features : int
        Features removed for each value of the variable.
    recordings : "best" or list of str
        Recordings whose trials are tested; ``best`` is the one decoded best on `select`.
    controls : int
        Random sets.
    negative : str, optional
        A recording that carries nothing: features chosen on it must do nothing.
    decision_hook : str, optional
        The readout's input, shown apart as the decision; by default only where it has an SAE.
    also : list of str
        What else is asked of the features at ``hook``: ``doses`` (more and more of them removed,
        or only these kept), ``sufficiency`` (added on other values' trials), ``probe`` (what a
        probe fitted anew still reads), ``over_time`` (removed at one latent time after another),
        ``units`` (the units that drive them left out of the input), ``search`` (ranked by what
        removing each costs, and the fewest that matter), ``dissociation`` (those of another
        variable removed, both read).
    second : str, optional
        The other variable of the dissociation; by default the first that varies over the trials.
    apart : float, optional
        Of an ordered variable: its values are compared with those at least this far off, which
        are alike no more, by two decoders over all repeats. Costs another decoder and dictionary.
    interventions : dict of str to interventions
        Interventions of your own, by name, run on all held-out trials.
    """

    hook: Name = "blocks.-1.hook_resid_post"
    variable: Name = "direction"
    n_features: Count = 6
    recordings: Literal["best"] | Annotated[list[Name], Field(min_length=1)] = "best"
    controls: Count = 999
    negative: Name | None = None
    decision_hook: Name | None = "dec.hook_resid_post"
    also: list[Verb] = []
    second: Name | None = None
    apart: Positive | None = None
    interventions: dict[Name, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> Ablation:
        _refuse_twice("also", self.also)
        named = [] if self.recordings == "best" else self.recordings
        _refuse_twice("recordings", named)
        if self.negative in named:
            raise ValueError(
                f"has negative {self.negative!r}, which is one of its recordings too; a recording "
                "that carries nothing is none to study"
            )
        if self.second is not None and "dissociation" not in self.also:
            raise ValueError(
                "has second, which is for a dissociation; add dissociation to ablation.also"
            )
        return self


class Study(_Fields):
    """A study: recordings, a decoder, its dictionaries, their tuning and its ablation.

    Attributes
    ----------
    name : str
        Title of the report.
    seeds : list of int
        One decoder and one set of dictionaries a seed.
    recordings, decoder, sae, tuning, ablation
        The stages.
    sweep : dict of str to list
        Values that fields take in turn, named as ``sae.k``: a study for each combination.
    """

    name: Name
    seeds: Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1)] = [0]
    recordings: Recordings = Recordings()
    decoder: Decoder = Decoder()
    sae: Dictionary = Dictionary()
    tuning: Tuning = Tuning()
    ablation: Ablation = Ablation()
    sweep: dict[Name, Annotated[list[Any], Field(min_length=1)]] = {}


def resolved(hook: str, depth: int) -> str:
    """Return the name of a hook in which ``blocks.-1`` stands for the last of ``depth`` blocks."""
    return re.sub(r"^blocks\.(-\d+)\.", lambda m: f"blocks.{depth + int(m[1])}.", hook)

"""One small study of everything that a study can ask, run once for several files of tests."""

import pytest

from neuro_lens.studies import run_study

SMALL = {
    "name": "Small",
    "recordings": {"simulate": {"n_animals": 2, "n_units": 8, "n_repeats": 8, "snr": 4.0}},
    "decoder": {"dim": 16, "depth": 1, "dim_head": 8, "steps": 60, "num_latents_per_step": 2},
    "sae": {"hooks": ["blocks.-1.hook_resid_post"], "d_sae": 24, "k": 4, "steps": 30},
    "tuning": {"permutations": 99, "between": ["cre_line"], "variables": ["direction"]},
    "ablation": {
        "recordings": ["sim00"],
        "n_features": 2,
        "controls": 5,
        "decision_hook": None,
        "also": [
            "doses", "sufficiency", "probe", "over_time", "units", "search", "dissociation",
        ],
        "apart": 90,
        "interventions": {
            "steered": {
                "hook": "blocks.-1.hook_resid_post", "features": [3], "change": {"clamp": 2.0},
            },
            "one unit out, one head": [
                {"units": ["sim00/unit000"]},
                {"hook": "blocks.0.attn.hook_z", "heads": [1], "change": "mean"},
            ],
        },
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def small_study():
    """The fields of a small study."""
    return SMALL


@pytest.fixture(scope="session")
def small_results(tmp_path_factory):
    """The results folder of the small study."""
    out = tmp_path_factory.mktemp("small") / "out"
    run_study(SMALL, out)
    return out

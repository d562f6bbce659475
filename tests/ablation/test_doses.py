import numpy as np
import pytest
import torch

from neuro_lens.ablation import ablation_study, dose_response
from neuro_lens.base import NeuroLensError

from .toy import CLASSES, HOOK, make_batch

RANKED = {v: [c, 6 + c, 10 + c, 14 + c] for c, v in enumerate(CLASSES)}


def run(hooked, dimensions, **kwargs):
    batch = make_batch("report", n_blocks=8)
    given = {"hook": HOOK, "controls": 99, **kwargs}
    return dose_response(hooked, dimensions, [batch], RANKED, **given), batch


def test_doses_are_the_first_by_rank(hooked, dimensions):
    (doses, _), batch = run(hooked, dimensions)
    removed = doses[doses["action"] == "remove"]
    assert sorted(removed["dose"].unique()) == [0, 1, 2, 4]
    target = batch.targets["grating"]

    def losses(features):
        with torch.no_grad(), hooked.ablate(dimensions, features, hook=HOOK):
            logits = hooked.decode(batch)
        return torch.nn.functional.cross_entropy(logits, target, reduction="none")

    alive = [f for f in range(24) if (batch.inputs["x"][..., f] > 0).any()]
    for row in doses.itertuples():
        first = RANKED[row.value][: row.dose]
        gone = first if row.action == "remove" else [f for f in alive if f not in first]
        extra = losses(gone) - losses([])
        mine = target == CLASSES.index(row.value)
        assert row.on_target == pytest.approx(extra[mine].mean().item(), abs=1e-6)
        assert row.off_target == pytest.approx(extra[~mine].mean().item(), abs=1e-6)
        assert row.n_features == row.dose


def test_no_dose_has_no_effect_and_the_largest_is_the_studys(hooked, dimensions):
    (doses, _), batch = run(hooked, dimensions)
    removed = doses[doses["action"] == "remove"].set_index(["value", "dose"])
    assert (removed.xs(0, level="dose")["on_target"] == 0).all()
    table = ablation_study(hooked, dimensions, [batch], RANKED, hook=HOOK, controls=4)
    own = table[(table["dictionary"] == "sae") & (table["ablated"] == table["tested"])]
    for row in own.itertuples():
        assert removed.loc[(row.ablated, 4), "on_target"] == pytest.approx(row.nats, abs=1e-6)


def test_carriers_are_selective_and_the_rest_encode_nothing(hooked, dimensions):
    (doses, areas), _ = run(hooked, dimensions)
    assert (areas["on_area"] > 5 * areas["controls_on"].abs()).all()
    first = doses[(doses["action"] == "remove") & (doses["dose"] == 1)]
    assert (first["p_specificity"] <= 0.1).all()  # one of 24 features is 0.04
    null = {v: [8 + c, 12 + c] for c, v in enumerate(CLASSES)}
    batch = make_batch("report", n_blocks=8)
    found = dose_response(hooked, dimensions, [batch], null, hook=HOOK, controls=99)
    removed = found.doses[found.doses["action"] == "remove"]
    assert (removed["p_specificity_corrected"].dropna() > 0.05).all()


def test_areas_claim_nothing_of_chance(hooked, dimensions):
    """Nested features among sets drawn anew for each dose: the rank of an area is no p."""
    _, areas = run(hooked, dimensions, controls=9)[0]
    assert not [c for c in areas if c.startswith("p_") or c == "regime"]


def test_areas_are_means_over_doses(hooked, dimensions):
    (doses, areas), _ = run(hooked, dimensions, doses=[0, 2, 4], controls=9)
    removed = doses[doses["action"] == "remove"].set_index(["value", "dose"])["on_target"]
    for row in areas.itertuples():
        y = [removed[(row.value, d)] for d in (0, 2, 4)]
        assert row.on_area == pytest.approx((y[0] + 2 * y[1] + y[2]) / 4, abs=1e-6)


def test_without_controls(hooked, dimensions):
    (doses, areas), _ = run(hooked, dimensions, controls=0, keep=False)
    assert "p_on" not in doses
    assert (areas["on_area"] > 0.5).all()
    assert set(doses["action"]) == {"remove"}


def test_keeping_everything_that_fires_changes_nothing(hooked, dimensions):
    every = {v: list(range(24)) for v in CLASSES}
    batch = make_batch("report")
    found = dose_response(
        hooked, dimensions, [batch], every, hook=HOOK, controls=0, doses=[1, 24]
    ).doses
    kept = found[(found["action"] == "keep") & (found["dose"] == 24)]
    assert np.abs(kept[["on_target", "off_target"]]).max(axis=None) < 1e-6


@pytest.mark.parametrize(("doses", "sentence"), [([-1, 2], "0 or more"), ([], "0 or more")])
def test_bad_doses(hooked, dimensions, doses, sentence):
    with pytest.raises(NeuroLensError, match=sentence):
        run(hooked, dimensions, doses=doses)


def test_empty_groups_are_refused(hooked, dimensions):
    with pytest.raises(NeuroLensError, match="has no feature"):
        dose_response(
            hooked, dimensions, [make_batch("report")], {0.0: []}, hook=HOOK, variable="direction"
        )

import numpy as np
import pytest
import torch

from neuro_lens.ablation import sufficiency
from neuro_lens.ablation.scene import Scene
from neuro_lens.base import NeuroLensError

from .toy import CLASSES, HOOK, TASKS, make_batch


def logits_with(hooked, dimensions, batch, feature, amounts):
    """Return the logits with a feature raised by an amount at each position, by hand."""
    x = hooked.decoder.embed(batch.inputs["x"]).clone()
    x[..., feature] += torch.as_tensor(amounts, dtype=x.dtype)
    keep = batch.inputs["mask"].float()
    pooled = (torch.tanh(x) * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)
    return hooked.decoder.readout(pooled).detach()


def test_carriers_move_the_answer(hooked, dimensions, carriers):
    batch = make_batch("report", n_blocks=8)
    found = sufficiency(hooked, dimensions, [batch], carriers, hook=HOOK, controls=19)
    target = batch.targets["grating"]
    mask = batch.inputs["mask"]
    for c, row in enumerate(found.itertuples()):
        assert row.value == CLASSES[c]
        mine = target == c
        codes = hooked.decoder.embed(batch.inputs["x"])[..., c].clamp(min=0).detach()
        size = (codes * mask)[mine].sum(0) / mask[mine].sum(0)
        after = logits_with(hooked, dimensions, batch, c, size)[~mine].log_softmax(-1)
        before = logits_with(hooked, dimensions, batch, c, 0 * size)[~mine].log_softmax(-1)
        odds = [torch.logit(p[:, c].double().exp()) for p in (after, before)]
        assert row.odds == pytest.approx((odds[0] - odds[1]).mean().item(), abs=1e-3)
        assert row.answered == pytest.approx((after.argmax(-1) == c).double().mean().item())
        nats = [-p.gather(-1, target[~mine][:, None]).mean().item() for p in (after, before)]
        assert row.own_nats == pytest.approx(nats[0] - nats[1], abs=1e-4)
    assert (found["answered_before"] == 0).all()
    assert (found["odds"] > found["controls_odds"] + 1).all()
    assert (found["low"] > 0).all()
    assert (found["p"].dropna() <= 0.25).all()


def test_sizes_may_come_from_other_trials(hooked, dimensions, carriers):
    tested, weak = make_batch("report"), make_batch("select", signal=0.3)
    given = {"hook": HOOK, "controls": 0}
    same = sufficiency(hooked, dimensions, [tested], carriers, **given)
    other = sufficiency(hooked, dimensions, [tested], carriers, sized_on=[weak], **given)
    assert (other["odds"] < same["odds"]).all()
    assert same["p"].isna().all()
    with pytest.raises(NeuroLensError, match="recording to take sizes from"):
        sufficiency(
            hooked,
            dimensions,
            [tested],
            carriers,
            sized_on=[make_batch("select", recording_id="m2")],
            **given,
        )


def test_adding_leaves_padding_alone_and_is_linear(hooked, dimensions):
    batch = make_batch("report")
    spliced = Scene(hooked, HOOK, [batch], TASKS["grating"], "direction").splice(dimensions)
    size = np.zeros((5, 48))
    size[:, 3], size[2, 1] = 0.5, 2.0
    from neuro_lens.ablation.spliced import AddedSets

    (part,) = spliced.spliced.parts
    change = AddedSets(part, [[3], [1, 3]], size)[0:2] - part.base
    mask = batch.inputs["mask"]
    assert torch.allclose(change[0][..., 3], 0.5 * mask, atol=1e-6)
    assert torch.allclose(change[1][:, 2, 1], torch.full((16,), 2.0), atol=1e-6)
    assert (change[:, ~mask] == 0).all()
    assert change[0].abs().sum() == pytest.approx(0.5 * mask.sum().item(), rel=1e-5)

import torch
from scipy.special import log_softmax

from neuro_lens.base import Task, accuracy, log_loss


def test_log_loss_is_in_nats_and_broadcasts_over_leading_axes():
    logits = torch.randn(3, 5, 4, dtype=torch.float64)
    target = torch.randint(4, (5,))
    expected = -log_softmax(logits.numpy(), -1)[:, range(5), target.numpy()]
    torch.testing.assert_close(
        log_loss(logits, target).double(), torch.tensor(expected), rtol=1e-5, atol=1e-6
    )
    assert accuracy(torch.eye(4), torch.arange(4)).all()


def test_rows_follow_the_mask():
    task = Task("t", "regression", 1, lambda out, inputs: out, lambda inputs: inputs["m"])
    mask = torch.tensor([[True, False], [False, True], [True, True]])
    window, position = task.rows({"m": mask})
    assert window.tolist() == [0, 1, 2, 2]
    assert position.tolist() == [0, 1, 0, 1]
    loss = task.loss(torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 4.0]))
    assert loss.tolist() == [1.0, 4.0]

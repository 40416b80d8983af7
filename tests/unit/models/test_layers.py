import pytest
import torch
import torch.nn.functional as F

from models.layers import Dropout, RMSNorm, Table, feature_key, rms_normalise


def test_rms_norm_equals_torch_with_gradients():
    x = torch.randn(7, 12, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(rms_normalise(x, 1e-3), F.rms_norm(x, (12,), eps=1e-3))
    assert torch.autograd.gradcheck(lambda x: rms_normalise(x, 1e-3), x)


def test_rms_norm_by_group_normalises_each_head_alone():
    norm = RMSNorm(4, 1e-6, "head", groups=3)
    x = torch.randn(5, 3, 4)
    x[:, 1] *= 100
    torch.testing.assert_close(norm(x).square().mean(-1), torch.ones(5, 3), rtol=1e-3, atol=0)


def test_rms_norm_of_zeros_is_zero_with_a_finite_gradient():
    x = torch.zeros(2, 4, requires_grad=True)
    rms_normalise(x, 1e-6).sum().backward()
    assert x.grad.isfinite().all()


def test_rms_norm_works_in_fp32_on_bf16():
    assert RMSNorm(4, 1e-6, "dim")(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_the_padding_row_is_zero_and_stays_so_and_the_unknown_row_learns():
    table = Table(5, 3, ("vocab:item", "dim"))
    table(torch.tensor([0, 1, 0, 2])).sum().backward()
    assert not table.weight[0].any()
    assert not table.weight.grad[0].any()
    assert table.weight.grad[1].all()


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(rate):
    torch.manual_seed(0)
    dropout = Dropout(rate)
    out = dropout(torch.ones(1000, 101))
    assert abs((out == 0).float().mean().item() - rate) < 0.005
    assert abs(out.mean().item() - 1) < 0.01
    columns = (out == 0).float().mean(0)  # no position in the eight bytes of a draw is favoured
    assert (columns - rate).abs().max() < 0.08
    assert torch.equal(dropout.eval()(torch.ones(3)), torch.ones(3))


def test_adding_what_dropout_left_is_adding_after_dropout():
    """The same elements, the same gradients, in training and in evaluation."""
    dropout = Dropout(0.3)
    x, y = (torch.randn(50, 7, requires_grad=True) for _ in range(2))
    for mode in (True, False):
        dropout.train(mode)
        outs = []
        for add in (dropout.add, lambda x, y: x + dropout(y)):
            torch.manual_seed(3)
            outs.append(add(x, y))
        assert (outs[0] == x).any() == mode
        torch.testing.assert_close(outs[0], outs[1])
        for mine, theirs in zip(*(torch.autograd.grad(out.square().sum(), [x, y]) for out in outs), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_feature_keys_survive_torch_and_never_collide():
    names = ["type", "a.b", "a%2Eb", "forward", "keys", "", "ümlaut x", "a:b"]
    keys = [feature_key(name) for name in names]
    assert len(set(keys)) == len(names)
    torch.nn.ModuleDict({key: torch.nn.Identity() for key in keys})

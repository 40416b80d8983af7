"""The streamed frequency against counts, and shared negatives against the full softmax."""

import torch
import torch.nn.functional as F

from models.negatives import SharedNegatives, StreamedFrequency
from models.softmax import sampled_softmax


def test_frequencies_are_those_of_the_stream():
    torch.manual_seed(0)
    share = 1 / torch.arange(1, 51, dtype=torch.float64)
    share = share / share.sum()
    frequency = StreamedFrequency(60)
    for _ in range(3000):
        frequency.observe(torch.multinomial(share, 40, replacement=True) + 3)
    found = frequency.share(torch.arange(3, 53)).double()
    assert ((found / share).log().abs() < 0.35).all(), "one per cent of memory: a hundred gaps' worth of noise at most"
    assert ((found / share).log().mean()).abs() < 0.05
    assert frequency.share(torch.tensor([0, 1, 2, 59])).tolist() == [0, 0, 0, 0]


def test_the_first_gaps_are_averaged_plainly():
    """Until an item has occurred a hundred times its share is its count over the targets up to its last step."""
    frequency = StreamedFrequency(5)
    for step in ([1, 1, 2, 4], [3, 3, 3, 1], [1, 4, 4, 4], [3, 3, 4, 4]):
        frequency.observe(torch.tensor(step))
    torch.testing.assert_close(frequency.share(torch.arange(5)), torch.tensor([0, 4 / 12, 1 / 4, 5 / 16, 6 / 16]))


def test_a_drift_is_followed():
    frequency = StreamedFrequency(4)
    for item in (1, 2):  # first one item is everything, then the other half
        for _ in range(600):
            frequency.observe(torch.tensor([item, 3]))
    assert frequency.share(torch.tensor([3])).item() > 0.49
    assert frequency.share(torch.tensor([2])).item() > 0.45, "its count over all targets would say a quarter"


def test_negatives_estimate_the_sum_over_the_catalogue_without_bias():
    """Many draws: the sampled loss is the full one, though popular items are drawn a hundred times as often."""
    torch.manual_seed(0)
    items, draws = 40, 200_000
    share = 1 / torch.arange(1, items + 1, dtype=torch.float64) ** 1.5
    negatives = SharedNegatives(items + 2, 2, draws)
    for _ in range(400):
        negatives.frequency.observe(torch.multinomial(share, 64, replacement=True) + 2)
    target = torch.multinomial(share, 200_000, replacement=True) + 2
    negative, log_expected = negatives(target)
    assert negative.min() >= 2 and negative.max() < items + 2 and len(negative) == draws
    hidden, table = torch.randn(3, 6, dtype=torch.float64), torch.randn(items + 2, 6, dtype=torch.float64)
    table[2:, 0], hidden[:, 0] = -share.log(), 1.0  # the more popular, the less liked: what a correction must not confuse
    own = torch.tensor([2, 20, 41])
    loss = sampled_softmax(hidden, table[own], table[negative], own, negative, torch.zeros(3), log_expected)
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ table[2:].T, own - 2), rtol=0.01, atol=0)
    uncorrected = sampled_softmax(hidden, table[own], table[negative], own, negative, torch.zeros(3), torch.full_like(log_expected, 8.5))
    assert (uncorrected - loss).abs() > 0.04 * loss


def test_a_step_without_targets_draws_uniformly_and_a_copy_goes_on_alike():
    negatives = SharedNegatives(12, 2, 8)
    rows, log_expected = negatives(torch.zeros(0, dtype=torch.int64))
    torch.testing.assert_close(log_expected, torch.full((8,), 0.8).log())
    assert len(rows) == 8
    negatives(torch.tensor([3, 3, 5]))
    copy = SharedNegatives(12, 2, 8)
    copy.load_state_dict(negatives.state_dict())
    outcomes = []
    for module in (negatives, copy):
        torch.manual_seed(1)
        outcomes.append(module(torch.tensor([5, 6])))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))

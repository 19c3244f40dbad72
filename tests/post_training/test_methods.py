"""Which tokens the passes of each method mask and predict; advantages; the terms of the loss."""

import numpy as np
import pytest
import torch

from qwen3llada.post_training.advantages import best_of_group, group_advantages
from qwen3llada.post_training.methods import METHODS, PassKnobs, Trajectory
from qwen3llada.post_training.policy_loss import k3, policy_terms


def trajectory(steps, blocks=None, key=7):
    return Trajectory(steps=np.array(steps), blocks=None if blocks is None else np.array(blocks), key=key)


def bits(mask):
    return "".join(map(str, mask.astype(int)))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("masks", [1, 3])
def test_what_is_predicted_is_masked_and_something_is(name, masks):
    for key in range(20):
        passes = METHODS[name].passes(trajectory([1, 3, 2, 2, 1], key=key), PassKnobs(masks=masks))
        assert all(not (one.predicted & ~one.masked).any() and one.predicted.any() for one in passes)


def test_coupled_predicts_each_token_once_for_each_mask():
    for key in range(20):
        passes = METHODS["coupled"].passes(trajectory([1, 2, 3, 4, 5], key=key), PassKnobs(masks=3))
        assert (sum(one.predicted.astype(int) for one in passes) == 3).all()
        assert all((one.predicted == one.masked).all() for one in passes)


def test_random_masks_depend_on_seed_and_rollout_alone_and_their_share_is_uniform():
    def masks(key, seed=0):
        return [one.masked for one in METHODS["random_mask"].passes(trajectory([1] * 8, key=key), PassKnobs(seed=seed))]

    assert bits(masks(5)[0]) == bits(masks(5)[0])
    assert len({bits(masks(key)[0]) for key in range(40)}) > 20
    assert [bits(masks(key, seed=1)[0]) for key in range(9)] != [bits(masks(key)[0]) for key in range(9)]
    shares = [masks(key)[0].mean() for key in range(2000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.std(shares) > 0.28  # of a uniform share 0.289, of single fair coins 0.18


def test_trace_follows_the_steps_and_shrink_joins_neighbours():
    steps = [1, 4, 2, 2, 3]
    passes = METHODS["trace"].passes(trajectory(steps), PassKnobs())
    assert [bits(p.predicted) for p in passes] == ["10000", "00110", "00001", "01000"]
    assert [bits(p.masked) for p in passes] == ["11111", "01111", "01001", "01000"]
    passes = METHODS["trace"].passes(trajectory(steps), PassKnobs(shrink=2))
    assert [bits(p.predicted) for p in passes] == ["10110", "01001"]
    assert [bits(p.masked) for p in passes] == ["11111", "01001"]


def test_trace_takes_the_blocks_of_a_causal_policy_side_by_side():
    passes = METHODS["trace"].passes(trajectory([2, 1, 3, 5, 4], [0, 0, 1, 1, 1]), PassKnobs())
    assert [bits(p.predicted) for p in passes] == ["01100", "10001", "00010"]
    assert [bits(p.masked) for p in passes] == ["11111", "10011", "00010"]


def test_advantages():
    rewards = np.array([[1.0, 0.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0], [0.1, 0.1, 0.1, 0.1]])
    assert group_advantages(rewards, "none").tolist() == [[0, -1, -1, 2], [0] * 4, [0] * 4]
    spread = 1.5**0.5  # of 1, 0, 0, 3: the mean square of 0, -1, -1, 2
    np.testing.assert_allclose(group_advantages(rewards, "std")[0], np.array([0, -1, -1, 2]) / spread)
    assert (group_advantages(rewards, "std")[1:] == 0).all()
    assert best_of_group(rewards).tolist() == [[0, 0, 0, 1], [0] * 4, [0] * 4]
    assert best_of_group(np.array([[1.0, 0.0, 1.0]])).tolist() == [[1, 0, 1]]


def test_the_ratio_is_exactly_one_where_nothing_has_moved():
    now = torch.randn(50, requires_grad=True)
    advantages = torch.randn(50)
    terms = policy_terms(now, now.detach(), None, advantages, clip_low=0.2, clip_high=0.2, kl=0.0)
    assert torch.equal(terms.loss, -advantages)
    assert not terms.clipped.any()
    terms.loss.sum().backward()
    assert torch.equal(now.grad, -advantages)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope", "clipped"),
    [
        (1.5, 1.0, -1.3, 0.0, 1),  # higher probability of a good token: no further
        (0.5, 1.0, -0.5, -0.5, 0),
        (0.5, -1.0, 0.9, 0.0, 1),  # lower probability of a bad token: no further
        (1.5, -1.0, 1.5, 1.5, 0),
        (1.2, 2.0, -2.4, -2.4, 0),  # between the bounds
        (5.0, 0.0, 0.0, 0.0, 0),
    ],
)
def test_the_ratio_is_clipped_on_the_side_of_the_advantage(ratio, advantage, value, slope, clipped):
    old = torch.tensor([-2.0])
    now = (old + torch.tensor([ratio]).log()).requires_grad_()
    terms = policy_terms(now, old, None, torch.tensor([advantage]), clip_low=0.1, clip_high=0.3, kl=0.0)
    terms.loss.sum().backward()
    assert (terms.loss.item(), now.grad.item()) == pytest.approx((value, slope), abs=1e-6)
    assert terms.clipped.item() == clipped


def test_k3_estimates_the_divergence():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    expected = (p * (p / q).log()).sum()
    assert (p * k3(p.log(), q.log())).sum().item() == pytest.approx(expected.item(), abs=1e-6)
    assert (k3(p.log(), q.log()) > 0).all()

"""Loss by noise level: unweighted cross-entropy in ten buckets of t."""

import torch
from torch import Tensor

from qwen3llada.objective.batch_loss import LossSum

BUCKETS = 10
BUCKET_NAMES = tuple(f"{i / BUCKETS:.1f}-{(i + 1) / BUCKETS:.1f}" for i in range(BUCKETS))


def bucket_sums(loss: LossSum) -> Tensor:
    """[2, 10]: sum of the cross-entropies at corrupted positions and their number, by noise level of the position."""
    cross_entropy = loss.cross_entropy
    buckets = (loss.prepared.levels * BUCKETS).long().clamp(0, BUCKETS - 1)  # [N]
    # Matrix product with 0/1 memberships: unlike index_add on a GPU, it sums in a fixed order.
    member = (buckets[None, :] == torch.arange(BUCKETS, device=buckets.device)[:, None]).to(cross_entropy.dtype)
    return torch.stack([member @ cross_entropy, member.sum(dim=1)])


def by_noise_level(sums: list[float], counts: list[float]) -> dict[str, float]:
    """{bucket: mean cross-entropy} for the buckets that are not empty."""
    return {name: s / n for name, s, n in zip(BUCKET_NAMES, sums, counts, strict=True) if n > 0}

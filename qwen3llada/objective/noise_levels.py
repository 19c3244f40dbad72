"""Loss by noise level: unweighted cross-entropy in ten buckets of t."""

import torch
from torch import Tensor

from qwen3llada.objective.batch_loss import LossSum

BUCKETS = 10
BUCKET_NAMES = tuple(f"{i / BUCKETS:.1f}-{(i + 1) / BUCKETS:.1f}" for i in range(BUCKETS))


def bucket_sums(loss: LossSum) -> Tensor:
    """[2, 10]: sums of the cross-entropies at corrupted positions, and how many they are, by the position's t."""
    cross_entropy = loss.cross_entropy
    buckets = (loss.prepared.levels * BUCKETS).long().clamp(0, BUCKETS - 1)  # [N]
    # A product with zeros and ones sums in a fixed order, where adding by index would not on a GPU.
    member = (buckets[None, :] == torch.arange(BUCKETS, device=buckets.device)[:, None]).to(cross_entropy.dtype)
    return torch.stack([member @ cross_entropy, member.sum(dim=1)])


def by_noise_level(sums: list[float], counts: list[float]) -> dict[str, float]:
    """{bucket: mean cross-entropy} of the buckets in which there is anything."""
    return {name: s / n for name, s, n in zip(BUCKET_NAMES, sums, counts, strict=True) if n > 0}

"""How DDP's processes add up their gradients, and where in memory."""

from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

GradientPlaces: TypeAlias = dict[nn.Parameter, Tensor]


def sum_gradients(wrapped: DistributedDataParallel) -> GradientPlaces:
    """Let DDP sum gradients over processes; by itself it averages, which scales each gradient in a pass of its own.

    Must come before the first backward pass, once.

    Returns: for each parameter, where DDP wants its gradient: part of a bucket that is sent as a whole. What computes
        the gradient there saves copying it. Empty until the second reduction; DDP arranges its buckets after the first.
    """
    places: GradientPlaces = {}
    arranged = False

    def reduce(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        nonlocal arranged
        if arranged and bucket.parameters()[0] not in places:
            places.update(zip(bucket.parameters(), bucket.gradients(), strict=True))
        arranged = arranged or bucket.is_last()
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    wrapped.register_comm_hook(None, reduce)
    return places

"""How DDP's processes add up their gradients: where these lie in memory, and what of a card the sums take."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# Matrix products work on a power of two of tiles at a time and leave 4 of an H100's or H200's multiprocessors idle.
HOPPER_MULTIPROCESSORS, SPARED = 132, 4
# Tokens of a micro-batch whose backward pass is longer than sums on so few: some 5,000 by reckoning, whatever the
# model's size; this many were measured.
ENOUGH_TOKENS = 16_384


class GradientSum:
    """Lets DDP sum gradients over processes; by itself it averages, which scales each gradient in a pass of its own.

    Must be made before the first backward pass, once.
    """

    def __init__(self, wrapped: DistributedDataParallel):
        self.places: dict[nn.Parameter, Tensor] = {}
        """For each parameter, where DDP wants its gradient: part of a bucket that is sent as a whole. What computes the
        gradient there saves copying it. Empty until the second reduction; DDP arranges its buckets after the first."""
        self.narrow_group: dist.ProcessGroup | None = None  # for sums beside the backward pass
        self._arranged = False
        wrapped.register_comm_hook(None, self._reduce)

    def share_processors(self, tokens: int) -> bool:
        """Sum on few multiprocessors while the backward pass goes on, and let its products leave these out.

        A product is launched for all multiprocessors; where a sum holds some, it takes two rounds, which is twice as
        long. Done where it was measured, on H100s of one host, or H200s, which have as many. All processes must call
        it.

        Args:
            tokens: of a micro-batch.

        Returns: whether it is done.
        """
        one_host = os.environ.get("LOCAL_WORLD_SIZE") == str(dist.get_world_size())
        multiprocessors = torch.cuda.get_device_properties().multi_processor_count
        known = hasattr(torch._C, "_set_sm_carveout_experimental")
        measured = tokens >= ENOUGH_TOKENS and one_host and multiprocessors == HOPPER_MULTIPROCESSORS
        if not (measured and known):
            return False
        options = dist.ProcessGroupNCCL.Options()
        options.config.min_ctas = options.config.max_ctas = SPARED  # a thread block holds a multiprocessor
        self.narrow_group = dist.new_group(backend="nccl", pg_options=options)
        return True

    @contextmanager
    def sparing_processors(self) -> Iterator[None]:
        """Products that are launched or recorded in here leave `SPARED` multiprocessors, if processors are shared.

        Torch warns once that these settings are experimental.
        """
        if self.narrow_group is None:
            yield
            return
        before = torch.backends.cuda.preferred_blas_library()
        torch.backends.cuda.preferred_blas_library("cublaslt")
        torch._C._set_sm_carveout_experimental(SPARED)  # cuBLASLt's alone
        try:
            yield
        finally:
            torch._C._set_sm_carveout_experimental(None)
            torch.backends.cuda.preferred_blas_library(before)

    def _reduce(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        if self._arranged and bucket.parameters()[0] not in self.places:
            self.places.update(zip(bucket.parameters(), bucket.gradients(), strict=True))
        self._arranged = self._arranged or bucket.is_last()
        # Nothing is computed beside the last one.
        group = None if bucket.is_last() else self.narrow_group
        work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

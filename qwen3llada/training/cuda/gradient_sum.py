"""Summation of gradients across DDP ranks: where the gradients are stored, and how many SMs the all-reduce takes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# Matrix products run a power of two of tiles at a time: they leave 4 of the 132 SMs of an H100 or H200 idle.
HOPPER_MULTIPROCESSORS, SPARED = 132, 4
# Smallest micro-batch, in tokens, at which SMs are shared. On 4 SMs the all-reduce must still finish within the
# backward pass: an estimate says from about 5,000 tokens on, for any model size; 16,384 is the size that was measured.
ENOUGH_TOKENS = 16_384


class GradientSum:
    """Make DDP sum gradients over ranks. By default DDP averages, which scales each gradient in an extra pass.

    Create one per wrapped model, before the first backward pass.
    """

    def __init__(self, wrapped: DistributedDataParallel):
        self.places: dict[nn.Parameter, Tensor] = {}
        """Parameter -> the view of DDP's all-reduce bucket that its gradient belongs in. A backward graph that writes
        there saves a copy. Empty until the second reduction, because DDP rebuilds its buckets after the first."""
        self.narrow_group: dist.ProcessGroup | None = None  # for all-reduces that overlap with the backward pass
        self._arranged = False
        wrapped.register_comm_hook(None, self._reduce)

    def share_processors(self, tokens: int) -> bool:
        """Run overlapping all-reduces on few SMs, and keep matrix products off those SMs.

        A product is launched for all SMs. If an all-reduce occupies some of them, the product needs a second wave and
        takes twice as long. Enabled only where it was measured: one host with H100s or H200s. All ranks must call this.

        Args:
            tokens: in a micro-batch.

        Returns: whether SMs are shared.
        """
        one_host = os.environ.get("LOCAL_WORLD_SIZE") == str(dist.get_world_size())
        multiprocessors = torch.cuda.get_device_properties().multi_processor_count
        known = hasattr(torch._C, "_set_sm_carveout_experimental")
        measured = tokens >= ENOUGH_TOKENS and one_host and multiprocessors == HOPPER_MULTIPROCESSORS
        if not (measured and known):
            return False
        options = dist.ProcessGroupNCCL.Options()
        options.config.min_ctas = options.config.max_ctas = SPARED  # one thread block occupies one SM
        self.narrow_group = dist.new_group(backend="nccl", pg_options=options)
        return True

    @contextmanager
    def sparing_processors(self) -> Iterator[None]:
        """Products launched or captured in this context leave `SPARED` SMs free, if `share_processors` enabled it.

        PyTorch warns once that these settings are experimental.
        """
        if self.narrow_group is None:
            yield
            return
        before = torch.backends.cuda.preferred_blas_library()
        torch.backends.cuda.preferred_blas_library("cublaslt")
        torch._C._set_sm_carveout_experimental(SPARED)  # only cuBLASLt honours it
        try:
            yield
        finally:
            torch._C._set_sm_carveout_experimental(None)
            torch.backends.cuda.preferred_blas_library(before)

    def _reduce(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        if self._arranged and bucket.parameters()[0] not in self.places:
            self.places.update(zip(bucket.parameters(), bucket.gradients(), strict=True))
        self._arranged = self._arranged or bucket.is_last()
        # No backward computation is left to overlap with the last bucket, so its all-reduce may use all SMs.
        group = None if bucket.is_last() else self.narrow_group
        work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

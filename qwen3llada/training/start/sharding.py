"""FSDP2: what is sharded together, what is gathered when, and over which ranks.

torch's `fully_shard` is applied here rather than by Accelerate, which has no place for weights that are read layer by
layer, for prefetching, or for what happens between the micro-batches of a step. Accelerate still starts the processes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qwen3llada.training.run_params import RunParams

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy


@dataclass(frozen=True, kw_only=True)
class ShardingPlan:
    """What stays gathered between passes. The more memory, the less communication; the arithmetic is the same.

    gathered: the 16-bit weights stay gathered from a step's first forward pass to its last backward pass. Otherwise
        each layer is gathered for its forward pass and again for its backward pass.
    sums_locally: each rank adds up whole float32 gradients over the micro-batches of a step, and they are reduced once.
        Otherwise each micro-batch is reduced, and only the shards are added up.
    """

    gathered: bool
    sums_locally: bool

    def __str__(self) -> str:
        weights = "gathered once per step" if self.gathered else "gathered for each pass of a layer"
        gradients = "once per step" if self.sums_locally else "in each micro-batch"
        return f"weights {weights}, gradients reduced {gradients}"


class Sharded:
    """A model sharded by `shard`, and the ranks among which it is."""

    def __init__(self, root: Any, plan: ShardingPlan, mesh: "DeviceMesh"):
        self.root, self.plan, self.mesh = root, plan, mesh
        self.ranks = mesh.get_group(mesh.ndim - 1)  # which together have one copy of the model

    def begin_micro_batch(self, *, last: bool) -> None:
        """Call before each forward pass of training. `last`: the step's update follows."""
        self.root.set_is_last_backward(last)
        self.root.set_requires_gradient_sync(last or not self.plan.sums_locally)
        if self.plan.gathered:
            self.root.set_reshard_after_backward(last)

    @torch.no_grad()
    def clip(self, parameters: Iterable[Any], limit: float) -> Tensor:
        """Scale gradients down to the norm `limit`. Returns the norm before, a scalar. Does not wait for the device.

        Works on the local shards: torch's own function dispatches several operations on sharded tensors for each
        parameter, which takes the host longer than the device.
        """
        gradients = [p.grad.to_local() for p in parameters if p.grad is not None]
        norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
        squared = torch.stack(norms).square().sum()
        dist.all_reduce(squared, group=self.ranks)
        norm = squared.sqrt()
        torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm


def shard(
    objective: Any,
    mesh: "DeviceMesh",
    policy: "MixedPrecisionPolicy",
    plan: ShardingPlan,
    *,
    before: Callable[[nn.Module], None],
) -> Sharded:
    """Shard `objective` (a `MaskedDiffusionObjective`) in place: a group for each layer, and one for all else.

    Untied input embeddings are a group, too: only the beginning of the forward pass needs them. Each group is gathered
    while the one before it computes.

    before: called with each group's module before it is sharded, to make parameters on the meta device real.
    """
    from torch.distributed.fsdp import fully_shard

    model = objective.model
    layers = list(model.model.layers)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    first = [] if embedding.weight is head.weight else [embedding]
    for module in (*first, *layers):
        before(module)
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=not plan.gathered)
    for module in first:
        module.set_unshard_in_backward(False)  # the gradient of a lookup does not depend on the weights
    before(objective)
    fully_shard(objective, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module, following in pairwise([objective, *first, *layers]):
        module.set_modules_to_forward_prefetch([following])
    for module, preceding in pairwise([objective, *reversed(layers)]):
        module.set_modules_to_backward_prefetch([preceding])
    return Sharded(objective, plan, mesh)


def mesh_of(accelerator: "Accelerator") -> "DeviceMesh":
    """The ranks: in one dimension, over which the model is sharded; or in two, the first of which are whole copies.

    The second is hybrid sharding (HSDP): gradients are reduced within each copy, and then between the copies.
    """
    from torch.distributed.device_mesh import init_device_mesh

    device, copies = accelerator.device.type, model_copies(accelerator)
    if copies == 1:
        return init_device_mesh(device, (accelerator.num_processes,), mesh_dim_names=("shard",))
    shape = (copies, accelerator.num_processes // copies)
    return init_device_mesh(device, shape, mesh_dim_names=("copy", "shard"))


def model_copies(accelerator: "Accelerator") -> int:
    """Sharded copies of the model: the launcher's `dp_replicate_size`. Accelerate has checked that it divides ranks."""
    config = accelerator.parallelism_config
    return 1 if config is None else config.dp_replicate_size


def precision(params: RunParams) -> "MixedPrecisionPolicy":
    """Gather and compute in 16 bits, reduce gradients in float32, and cast neither inputs nor loss."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    compute = torch.float16 if params.fp16 else torch.bfloat16 if params.bf16 else torch.float32
    return MixedPrecisionPolicy(
        param_dtype=compute, reduce_dtype=torch.float32, output_dtype=None, cast_forward_inputs=False
    )

"""Summing gradients over processes, against the sum of what each has; in processes of their own, which may not fork."""

import torch
from runs import free_port, run_together
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from qwen3llada.training.reduction import sum_gradients

PROCESSES, FEATURES, STEPS = 2, 3, 5


class Direct(torch.autograd.Function):
    """x · w, whose gradient of `weight` is computed in `place`, where there is one."""

    @staticmethod
    def forward(ctx, weight, x, place):
        ctx.x, ctx.place = x, place
        return x @ weight

    @staticmethod
    def backward(ctx, grad):
        gradient = ctx.x.T @ grad
        return gradient if ctx.place is None else ctx.place.copy_(gradient).detach(), None, None


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.direct = nn.Parameter(torch.ones(FEATURES, FEATURES))
        self.plain = nn.Linear(FEATURES, FEATURES)
        self.places = {}

    def forward(self, x):
        return self.plain(Direct.apply(self.direct, x, self.places.get(self.direct))).sum()


def test_gradients_are_summed_and_may_be_computed_where_they_are_sent_from():
    run_together(PROCESSES, check_process, free_port())


def check_process(rank, port):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES)
    torch.manual_seed(0)
    model, alone = Model(), Model()
    alone.load_state_dict(model.state_dict())
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, bucket_cap_mb=1e-5)
    places = sum_gradients(wrapped)
    for number in range(STEPS):
        given = [torch.randn(4, FEATURES) for _ in range(PROCESSES)]
        accumulated = number % 2 == 1
        if accumulated:
            with wrapped.no_sync():
                wrapped(given[rank]).backward()
            model.direct.grad = model.direct.grad.clone()  # the next is computed in the same place
        wrapped(given[rank]).backward()
        ((1 + accumulated) * sum(alone(x) for x in given)).backward()
        for (name, mine), single in zip(model.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, single.grad, msg=f"step {number}, {name}")
        if model.places:
            assert model.direct.grad.data_ptr() == places[model.direct].data_ptr()
        model.zero_grad(), alone.zero_grad()
        assert set(places) == (set(model.parameters()) if number else set())  # buckets are arranged after the first
        model.places = places
    assert not torch.equal(given[0], given[1])
    dist.destroy_process_group()

"""Sums of gradients over ranks equal the sum of their gradients. Run in separate processes that may not fork."""

from types import SimpleNamespace

import pytest
import torch
from runs import free_port, run_together
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from qwen3llada.training.cuda.gradient_sum import ENOUGH_TOKENS, SPARED, GradientSum

PROCESSES, FEATURES, STEPS = 2, 3, 5


class Direct(torch.autograd.Function):
    """x · w, with the gradient of `weight` computed in `place` if there is one."""

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


@pytest.mark.parametrize("shared", [False, True], ids=["one group", "a group for all buckets but the last"])
def test_gradients_are_summed_and_may_be_computed_where_they_are_sent_from(shared):
    run_together(PROCESSES, check_process, free_port(), shared)


def check_process(rank, port, shared):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES)
    torch.manual_seed(0)
    model, alone = Model(), Model()
    alone.load_state_dict(model.state_dict())
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, bucket_cap_mb=1e-5)
    reduction = GradientSum(wrapped)
    places, groups = reduction.places, []
    reduction.narrow_group = dist.new_group() if shared else None
    all_reduce = dist.all_reduce
    dist.all_reduce = lambda *args, **named: (groups.append(named["group"]), all_reduce(*args, **named))[1]
    for number in range(STEPS):
        groups.clear()
        given = [torch.randn(4, FEATURES) for _ in range(PROCESSES)]
        accumulated = number % 2 == 1
        if accumulated:
            with wrapped.no_sync():
                wrapped(given[rank]).backward()
            model.direct.grad = model.direct.grad.clone()  # the next gradient is computed in the same place
        wrapped(given[rank]).backward()
        ((1 + accumulated) * sum(alone(x) for x in given)).backward()
        for (name, mine), single in zip(model.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, single.grad, msg=f"step {number}, {name}")
        assert groups == [reduction.narrow_group] * (len(groups) - 1) + [None]
        assert len(groups) > 1 or number == 0  # DDP's first buckets hold 1 MB
        if model.places:
            assert model.direct.grad.data_ptr() == places[model.direct].data_ptr()
        model.zero_grad(), alone.zero_grad()
        assert set(places) == (set(model.parameters()) if number else set())  # known from the second reduction on
        model.places = places
    assert not torch.equal(given[0], given[1])
    dist.destroy_process_group()


@pytest.fixture
def hopper(monkeypatch):
    """Mocks two ranks on H100s of one host, as far as they are queried."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(multi_processor_count=132))
    monkeypatch.setattr(dist, "new_group", lambda backend, pg_options: pg_options.config.max_ctas)
    return monkeypatch


def reduction():
    return GradientSum(SimpleNamespace(register_comm_hook=lambda state, hook: None))


def test_products_leave_the_multiprocessors_that_sums_take_and_no_others_do(hopper):
    settings = torch._C._get_sm_carveout_experimental, torch.backends.cuda.preferred_blas_library
    before = [read() for read in settings]
    sums = reduction()
    with sums.sparing_processors():
        assert [read() for read in settings] == before
    assert sums.share_processors(ENOUGH_TOKENS)
    assert sums.narrow_group == SPARED
    with sums.sparing_processors():
        assert [read() for read in settings] == [SPARED, torch._C._BlasBackend.Cublaslt]
    assert [read() for read in settings] == before


@pytest.mark.parametrize(
    "elsewhere", ["another card", "several hosts", "not by torchrun", "another torch", "small batches"]
)
def test_processors_are_shared_only_where_that_was_measured(hopper, elsewhere):
    if elsewhere == "another card":
        hopper.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(multi_processor_count=108))
    elif elsewhere == "several hosts":
        hopper.setattr(dist, "get_world_size", lambda: 4)
    elif elsewhere == "not by torchrun":
        hopper.delenv("LOCAL_WORLD_SIZE")
    elif elsewhere == "another torch":
        hopper.delattr(torch._C, "_set_sm_carveout_experimental")
    sums = reduction()
    assert not sums.share_processors(ENOUGH_TOKENS - (elsewhere == "small batches"))
    assert sums.narrow_group is None

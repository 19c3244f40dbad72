"""The fused loss against full logits in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from qwen3llada.diffusion import fused_cross_entropy as module
from qwen3llada.diffusion.fused_cross_entropy import fused_cross_entropy

N, D, V = 37, 16, 501


def inputs(n=N, d=D, v=V, dtype=torch.float32, device="cpu", spread=1.0):
    """hidden [n, d] and weight [v, d] that require gradients, targets [n], token weights [n]."""
    generator = torch.Generator().manual_seed(n + v)
    hidden = torch.randn(n, d, generator=generator) * spread
    weight = torch.randn(v, d, generator=generator)
    targets = torch.randint(v, (n,), generator=generator)
    token_weights = 0.1 + 5 * torch.rand(n, generator=generator)
    floats = [x.to(device, dtype).requires_grad_() for x in (hidden, weight)]
    return *floats, targets.to(device), token_weights.to(device)


def written_out(hidden, weight, targets, token_weights, smoothing=0.0):
    """The loss from full logits, in the dtype of the inputs up to the logits, then at least float32."""
    logits = F.linear(hidden, weight)
    log_q = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    cross_entropy = -log_q[torch.arange(len(targets)), targets]
    return (token_weights * ((1 - smoothing) * cross_entropy - smoothing * log_q.mean(-1))).sum()


def exact(hidden, weight, targets, token_weights, smoothing=0.0):
    """Loss and both gradients in float64 from the same values."""
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    loss = written_out(hidden, weight, targets, token_weights.double(), smoothing)
    return loss, *torch.autograd.grad(loss, (hidden, weight))


def error(value, truth):
    return ((value.detach().double() - truth.detach()).norm() / truth.detach().norm()).item()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk_size", [1, 10, N, 1000, None])
def test_equals_the_plain_loss(smoothing, chunk_size):
    given = inputs()
    loss = fused_cross_entropy(*given, smoothing=smoothing, chunk_size=chunk_size)
    got = (loss, *torch.autograd.grad(loss, given[:2]))
    plain = written_out(*given, smoothing)
    expected = (plain, *torch.autograd.grad(plain, given[:2]))
    assert loss.dtype == torch.float32
    for value, reference, truth, bound in zip(got, expected, exact(*given, smoothing), (1e-6, 1e-5, 1e-5), strict=True):
        assert error(value, reference.double()) <= bound
        assert error(value, truth) <= bound


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_gradients_by_finite_differences(smoothing):
    hidden, weight, targets, token_weights = inputs(5, 3, 11, torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w: fused_cross_entropy(h, w, targets, token_weights, smoothing=smoothing, chunk_size=2),
        (hidden, weight),
    )


def test_neither_all_logits_nor_a_second_chunk_exists():
    """Only one of all storages allocated on the way is as large as a chunk of logits."""
    rows, tokens = 40, 400
    sizes: dict[int, int] = {}

    class Storages(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            results = result if isinstance(result, tuple | list) else (result,)
            for storage in (x.untyped_storage() for x in results if isinstance(x, torch.Tensor)):
                sizes[storage.data_ptr()] = max(sizes.get(storage.data_ptr(), 0), storage.nbytes())
            return result

    given = inputs(tokens)
    with Storages():
        fused_cross_entropy(*given, smoothing=0.1, chunk_size=rows).backward()
    chunk = rows * V * 4
    assert [size for size in sizes.values() if size > 0.75 * chunk] == [chunk]


def test_chunks_are_even_and_never_above_the_limit():
    limit = module.ACCELERATOR_CHUNK_BYTES // 1000
    for count in (1, limit - 1, limit, limit + 1, 5 * limit + 3):
        rows = module.rows_per_chunk(count, 1000, "cuda", None)
        chunks = -(-count // rows)
        assert rows <= limit
        assert chunks == -(-count // limit)
        assert chunks * rows - count < chunks
    assert module.rows_per_chunk(7, 10**12, "cpu", None) == 1


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_operand_costs_nothing_and_changes_nothing(frozen):
    given = inputs()
    expected = exact(*given)[2 - frozen]
    given[frozen].requires_grad_(False)
    loss = fused_cross_entropy(*given, chunk_size=10)
    assert loss.grad_fn.saved_tensors[frozen] is None  # not even computed
    loss.backward()
    assert given[frozen].grad is None
    assert error(given[1 - frozen].grad, expected) <= 1e-5


def test_no_token_gives_zero_and_zero_gradients():
    hidden, weight, targets, token_weights = inputs(0)
    loss = fused_cross_entropy(hidden, weight, targets, token_weights)
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad.shape == (0, D)
    assert torch.equal(weight.grad, torch.zeros(V, D))


def test_tokens_of_weight_zero_change_nothing():
    hidden, weight, targets, token_weights = inputs()
    token_weights[::2] = 0
    loss = fused_cross_entropy(hidden, weight, targets, token_weights)
    loss.backward()
    kept = fused_cross_entropy(hidden.detach()[1::2], weight.detach(), targets[1::2], token_weights[1::2])
    assert loss.item() == pytest.approx(kept.item(), rel=1e-6)
    assert hidden.grad[::2].abs().max() == 0


def test_gradients_are_scaled_and_accumulated():
    """The backward pass scales by the incoming gradient, over several backward passes and over a retained graph."""
    given = inputs()
    _, hidden, weight = exact(*given)
    loss = fused_cross_entropy(*given, chunk_size=10)
    (loss * 1024).backward(retain_graph=True)
    (loss * -24).backward()
    fused_cross_entropy(*given, chunk_size=7).backward()
    assert error(given[0].grad, hidden * 1001) <= 1e-5
    assert error(given[1].grad, weight * 1001) <= 1e-5


def test_a_weight_used_twice_sums_its_gradients():
    """Tied embeddings: the table both makes and projects the hidden states."""
    _, table, targets, token_weights = inputs()
    ids = torch.arange(N) % 11
    fused_cross_entropy(F.embedding(ids, table).tanh(), table, targets, token_weights).backward()
    double = table.detach().double().requires_grad_()
    written_out(F.embedding(ids, double).tanh(), double, targets, token_weights).backward()
    assert error(table.grad, double.grad) <= 1e-5


def test_losses_per_token_are_plain_and_detached():
    hidden, weight, targets, token_weights = inputs()
    loss, per_token = fused_cross_entropy(
        hidden, weight, targets, token_weights, smoothing=0.2, chunk_size=10, return_per_token=True
    )
    expected = F.cross_entropy(F.linear(hidden, weight), targets, reduction="none")
    assert loss.requires_grad
    assert not per_token.requires_grad
    torch.testing.assert_close(per_token, expected.detach(), rtol=1e-5, atol=1e-5)


def test_without_gradients_there_is_no_graph():
    given = inputs()
    with torch.no_grad():
        loss = fused_cross_entropy(*given)
    assert not loss.requires_grad
    assert error(loss, exact(*given)[0]) <= 1e-6


@pytest.mark.parametrize("offset", [3e4, -3e4])
def test_extreme_logits(offset):
    """Logits far from 0, and targets whose probability underflows in float32."""
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    weight = torch.tensor([[offset, 0.0], [offset - 500, 1.0], [offset - 1, 2.0]], requires_grad=True)
    given = (hidden, weight, torch.tensor([1, 0]), torch.ones(2))
    loss = fused_cross_entropy(*given)
    truth = exact(*given)
    assert loss.item() == pytest.approx(truth[0].item(), rel=1e-6)
    for value, expected in zip(torch.autograd.grad(loss, (hidden, weight)), truth[1:], strict=True):
        assert error(value, expected) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_the_plain_path(dtype):
    given = inputs(64, 32, 1000, dtype)
    compare_with_plain_half_precision(given, scale=1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1.0), (torch.bfloat16, 2**-13), (torch.float16, 8.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_half_precision_on_a_gpu(dtype, scale, smoothing):
    """In chunks of two sizes."""
    given = inputs(300, 256, 20_000, dtype, "cuda", spread=0.1)
    compare_with_plain_half_precision(given, scale, smoothing, chunk_size=128)


def compare_with_plain_half_precision(given, scale, smoothing=0.0, chunk_size=24):
    truth = exact(*given, smoothing)
    loss = fused_cross_entropy(*given, smoothing=smoothing, chunk_size=chunk_size)
    plain = written_out(*given, smoothing)
    ours = (loss, *torch.autograd.grad(loss * scale, given[:2]))
    theirs = (plain, *torch.autograd.grad(plain * scale, given[:2]))
    factors = (1, scale, scale)
    for value, reference, expected, factor in zip(ours, theirs, truth, factors, strict=True):
        assert value.dtype == reference.dtype
        # Of two results with the same rounding either may be better by chance. 2 % are allowed, far below one bit of
        # bfloat16. Scales are powers of 2, so they do not move the rounding.
        assert error(value, expected * factor) <= 1.02 * error(reference, expected * factor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_the_operands_and_nothing_else(dtype):
    """float32 parameters: products of rounded operands, gradients in float32, as exact as float32 sums are."""
    given = inputs()
    rounded = [x.detach().to(dtype).float() for x in given[:2]]
    truth = exact(*rounded, *given[2:])
    with torch.autocast("cpu", dtype=dtype):
        loss = fused_cross_entropy(*given, chunk_size=10)
    loss.backward()
    assert given[0].grad.dtype == given[1].grad.dtype == torch.float32
    for value, expected in zip((loss, given[0].grad, given[1].grad), truth, strict=True):
        assert error(value, expected) <= 1e-5


def test_a_chunk_kept_in_half_precision_is_rounded_once():
    """bfloat16 logits in, their gradient out, float32 between."""
    torch.manual_seed(0)
    logits = (3 * torch.randn(20, V)).bfloat16()
    targets, scale = torch.randint(V, (20,)), torch.rand(20)
    wide = logits.float().requires_grad_()
    loss = F.cross_entropy(wide, targets, reduction="none", label_smoothing=0.1)
    expected = torch.autograd.grad((scale * loss).sum(), wide)[0]
    result = module._softmax_gradient_(logits, targets, scale, 0.1)
    torch.testing.assert_close(result[0], F.cross_entropy(wide, targets, reduction="none").detach())
    torch.testing.assert_close(result[1], loss.detach())
    logits.scatter_(1, targets[:, None], result[2][:, None].bfloat16())
    torch.testing.assert_close(logits.float(), expected, rtol=2**-8, atol=1e-8)


def test_float16_scale_keeps_small_probabilities():
    """float16 cannot resolve a softmax of 1/151,936. Scaled, it keeps its 11 bits for any weights."""
    for largest in (1e-3, 1.0, 1e4):
        token_weights = torch.tensor([0.5, 1.0]) * largest
        scale, unscale = module.logit_gradient_scale(token_weights, torch.float16)
        small = scale / 151_936
        assert scale.max() < torch.finfo(torch.float16).max
        torch.testing.assert_close(small.half().float(), small, rtol=2**-10, atol=0)
        torch.testing.assert_close(scale * unscale, token_weights)
    zero, unscale = module.logit_gradient_scale(torch.zeros(2), torch.float16)
    assert torch.equal(zero, torch.zeros(2))
    assert unscale.isfinite()
    assert module.logit_gradient_scale(token_weights, torch.bfloat16) == (token_weights, None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden": torch.zeros(N, D + 1)}, "must be .N, D. and .V, D."),
        ({"hidden": torch.zeros(1, N, D)}, "must be .N, D. and .V, D."),
        ({"targets": torch.zeros(N - 1, dtype=torch.long)}, "targets of shape"),
        ({"token_weights": torch.ones(N, 1)}, "token_weights of shape"),
        ({"token_weights": torch.ones(N, requires_grad=True)}, "must not require a gradient"),
        ({"hidden": torch.zeros(N, D, dtype=torch.bfloat16)}, "outside autocast"),
        ({"smoothing": 1.0}, "smoothing=1.0 must be in"),
        ({"smoothing": -0.1}, "smoothing=-0.1 must be in"),
        ({"chunk_size": 0}, "chunk_size=0 must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(changed, message):
    given = dict(zip(("hidden", "weight", "targets", "token_weights"), inputs(), strict=True))
    with pytest.raises(ValueError, match=message):
        fused_cross_entropy(**{**given, **changed})

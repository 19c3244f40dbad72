"""The mask token's row cannot win, whatever the hidden state: random or adversarial, whole or split argmax."""

import pytest
import torch

from qwen3llada.serving.mask_row import losing_row, with_row

TEXT, V, D = 900, 960, 16  # ids below 900 are text, 900 is the mask, the rest are free rows


def head(kind, dtype):
    """A head [V, D]: random rows; rows with a common part, as those of trained models have; rows of unlike lengths."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(V, D, generator=generator)
    if kind == "common":
        rows = 0.05 * rows - 3
    if kind == "unlike":
        rows = rows * torch.logspace(-3, 1, V)[:, None]
    rows = rows.to(dtype)
    row = losing_row(rows.split(100), TEXT)
    return torch.cat(list(with_row(rows.split(100), TEXT, row)))


def states(rows, dtype):
    """Hidden states [N, D]: random, along the rows and their mean, and those that bring the mask closest to the top."""
    generator = torch.Generator().manual_seed(1)
    random = torch.randn(2000, D, generator=generator)
    mean = rows[:TEXT].float().mean(0)
    along = torch.cat([rows.float(), -rows.float(), mean[None], -mean[None], 1e3 * mean[None], -1e-3 * mean[None]])
    worst = torch.randn(64, D, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([worst], lr=0.05)
    for _ in range(200):
        logits = torch.nn.functional.normalize(worst, dim=-1) @ rows.float().T
        gap = (logits[:, :TEXT].max(-1).values - logits[:, TEXT]).sum()
        optimizer.zero_grad()
        gap.backward()
        optimizer.step()
    return torch.cat([random, along, worst.detach(), -worst.detach()]).to(dtype)


def split_argmax(logits, parts=7):
    """Of each part of the vocabulary its first best, then the first of the best: as engines do over devices."""
    best = [part.max(-1) for part in logits.split(-(-V // parts), -1)]
    values = torch.stack([b.values for b in best], -1)
    starts = torch.arange(len(best)) * -(-V // parts)
    chosen = values.argmax(-1)
    indices = torch.stack([b.indices for b in best], -1) + starts
    return indices.gather(-1, chosen[:, None])[:, 0]


@pytest.mark.parametrize("kind", ["random", "common", "unlike"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_hidden_state_makes_the_mask_the_best(kind, dtype):
    rows = head(kind, dtype)
    hidden = states(rows, dtype)
    logits = hidden @ rows.T
    assert not (logits.argmax(-1) == TEXT).any()
    assert not (split_argmax(logits) == TEXT).any()
    assert not (logits.float().argmax(-1) == TEXT).any()


@pytest.mark.parametrize("kind", ["random", "common", "unlike"])
def test_where_it_comes_close_the_distribution_is_uniform(kind):
    """The claim's second part, in float64: gap <= 2e means that no token has more than exp(2e)/n."""
    rows = head(kind, torch.float32).double()
    rows[TEXT] = rows[:TEXT].mean(0)
    logits = states(rows, torch.float64) @ rows.T
    text = logits[:, :TEXT]
    gap = text.max(-1).values - logits[:, TEXT]
    assert (gap > 0).all()
    assert (torch.softmax(text, -1).max(-1).values <= gap.exp() / TEXT * (1 + 1e-12)).all()
    with_mask = torch.softmax(logits[:, : TEXT + 1], -1)[:, TEXT]
    assert (with_mask <= 1 / (TEXT + 1) * (1 + 1e-12)).all()


def test_a_zero_row_would_win():
    rows = head("common", torch.float32)
    rows[TEXT] = 0
    hidden = torch.ones(1, D)  # all rows point away from it
    assert (hidden @ rows.T).argmax(-1).item() == TEXT


def test_the_mean_is_of_the_rows_before_the_mask_whatever_the_chunks():
    rows = torch.randn(30, 4)
    for size in (1, 7, 30):
        assert torch.allclose(losing_row(rows.split(size), 20), rows[:20].mean(0), atol=1e-6)
        changed = torch.cat(list(with_row(rows.split(size), 20, torch.zeros(4))))
        assert (changed != rows).any(-1).nonzero()[:, 0].tolist() == [20]
    with pytest.raises(ValueError, match="mask_token_id=0 must have rows before it"):
        losing_row(rows.split(7), 0)

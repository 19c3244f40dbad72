"""Forward and backward of the vocabulary head: full logits, our fused loss, and libraries with a fused loss.

    python -m bench.loss [--device cpu|cuda] [--repeats N]

All candidates compute sum_i w_i·CE_i over the corrupted half of the tokens. "plain" projects all tokens, converts the
logits to float32 and takes the cross-entropy at corrupted positions. Peaks include hidden states, weight and gradients.
"""

import argparse
import functools
import importlib.util
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.measure import cpu_peak, cuda_peak, print_ratios, take_turns
from qwen3llada.diffusion.fused_cross_entropy import fused_cross_entropy

VOCABULARY = 151_936  # rows of Qwen3's embedding
TORCH_ROWS = 512  # rows per chunk; torch would choose 2 here, which takes minutes on a CPU
LARGEST_WEIGHT = 10.0  # 1/p of a token masked with probability 0.1


class Head(NamedTuple):
    """Inputs of the head: T tokens, half of them corrupted."""

    hidden: Tensor  # [T, D]
    weight: Tensor  # [V, D]
    targets: Tensor  # [T]
    token_weights: Tensor  # [T] float32
    positions: Tensor  # [T/2] indices of the corrupted tokens

    def corrupted(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inputs of the loss: hidden [T/2, D], weight, targets [T/2], token weights [T/2]."""
        at = self.positions
        chosen = self.hidden.index_select(0, at), self.weight
        return *chosen, self.targets.index_select(0, at), self.token_weights.index_select(0, at)


def make_head(tokens: int, width: int, dtype: torch.dtype, device: str) -> Head:
    """Random inputs. Logits have a standard deviation of about 1, as at the start of training."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator)
    weight = torch.randn(VOCABULARY, width, generator=generator) * width**-0.5
    targets = torch.randint(VOCABULARY, (tokens,), generator=generator)
    token_weights = 1 + (LARGEST_WEIGHT - 1) * torch.rand(tokens, generator=generator)
    positions = torch.randperm(tokens, generator=generator)[: tokens // 2].sort().values
    floats = (x.to(device, dtype).requires_grad_() for x in (hidden, weight))
    return Head(*floats, *(x.to(device) for x in (targets, token_weights, positions)))


def plain(head: Head) -> Tensor:
    """Float32 logits of all tokens, then the loss at corrupted positions."""
    logits = F.linear(head.hidden, head.weight).float().index_select(0, head.positions)
    _, _, targets, token_weights = head.corrupted()
    return (token_weights * F.cross_entropy(logits, targets, reduction="none")).sum()


def fused(head: Head) -> Tensor:
    """This project's fused loss."""
    return cast(Tensor, fused_cross_entropy(*head.corrupted()))


def torch_chunked(head: Head) -> Tensor:
    """torch's chunked projection (2.12 and later). Weights per token require its unreduced losses."""
    hidden, weight, targets, token_weights = head.corrupted()
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=TORCH_ROWS, chunking_method=None)
    losses = F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options)
    return (token_weights * losses).sum()


def liger(head: Head) -> Tensor:
    """Liger-Kernel, with unreduced losses as above."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    hidden, weight, targets, token_weights = head.corrupted()
    losses = LigerFusedLinearCrossEntropyLoss(reduction="none", accum_dtype=torch.float32)(weight, hidden, targets)
    return (token_weights * losses).sum()


def cut(head: Head) -> Tensor:
    """Cut cross-entropy (arXiv 2411.09009), without its filter of small gradients, which would make them inexact."""
    from cut_cross_entropy import linear_cross_entropy

    hidden, weight, targets, token_weights = head.corrupted()
    losses = linear_cross_entropy(hidden, weight, targets, reduction="none", filter_eps=None)
    return (token_weights * losses).sum()


def candidates(device: str) -> dict[str, Callable[[Head], Tensor]]:
    """The candidates that can run here, by name."""
    found: dict[str, Callable[[Head], Tensor]] = {"plain": plain, "fused": fused}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        found["torch linear_cross_entropy"] = torch_chunked
    if device == "cuda" and importlib.util.find_spec("liger_kernel"):
        found["liger-kernel"] = liger
    if device == "cuda" and importlib.util.find_spec("cut_cross_entropy"):
        found["cut-cross-entropy"] = cut
    return found


def forward_backward(loss: Callable[[Head], Tensor], head: Head) -> Tensor:
    """The head's work in one training step. Leaves gradients in the inputs."""
    head.hidden.grad = head.weight.grad = None
    value = loss(head)
    value.backward()
    return value.detach()


def gradients(head: Head) -> tuple[Tensor, Tensor]:
    """Gradients of hidden states and weight after a step."""
    return cast(Tensor, head.hidden.grad), cast(Tensor, head.weight.grad)


def once(name: str, tokens: int, width: int, dtype: torch.dtype) -> None:
    """One step, run in a separate process to measure its memory."""
    forward_backward(candidates("cpu")[name], make_head(tokens, width, dtype, "cpu"))


def compare(tokens: int, width: int, dtype: torch.dtype, device: str, repeats: int) -> None:
    """Measure time and memory of all candidates for one size."""
    names, place = candidates(device), torch.device(device)
    head = make_head(tokens, width, dtype, device)
    steps = {name: functools.partial(forward_backward, loss, head) for name, loss in names.items()}
    values = {name: step() for name, step in steps.items()}
    times = take_turns(steps, place, warmup=0, repeats=repeats)  # the line above has warmed up
    if device == "cuda":
        head.hidden.grad = head.weight.grad = None
        peaks = {name: cuda_peak(step, place) for name, step in steps.items()}
    else:
        del head, steps
        peaks = {name: cpu_peak(once, name, tokens, width, dtype) for name in names}
    notes = {name: f"loss {values[name].item() / values['plain'].item() - 1:+.1e}" for name in names}
    print_ratios(f"{device}, {tokens} tokens, width {width}, {dtype}", times, peaks, "plain", notes)


def accuracy(tokens: int, width: int, dtype: torch.dtype, device: str) -> None:
    """Relative errors of all candidates against float64 on the same (rounded) inputs."""
    head = make_head(tokens, width, dtype, device)
    exact = head._replace(hidden=head.hidden.detach().double(), weight=head.weight.detach().double())
    exact.hidden.requires_grad_(), exact.weight.requires_grad_()
    logits = F.linear(exact.corrupted()[0], exact.weight)
    losses = F.cross_entropy(logits, exact.corrupted()[2], reduction="none")
    truth = (exact.token_weights[exact.positions] * losses).sum()
    truth.backward()
    print(f"\nrelative errors, {device}, {tokens} tokens, width {width}, {dtype}\n  {'':34} loss     hidden   weight")
    for name, loss in candidates(device).items():
        value = forward_backward(loss, head)
        errors = [abs(value.item() / truth.item() - 1)]
        for got, right in zip(gradients(head), gradients(exact), strict=True):
            errors.append(((got.double() - right).norm() / right.norm()).item())
        print(f"  {name:34} " + " ".join(f"{error:.2e}" for error in errors), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds; the median counts")
    given = parser.parse_args()
    print(f"torch {torch.__version__}", torch.cuda.get_device_name() if given.device == "cuda" else "")
    if given.device == "cuda":
        accuracy(2048, 1024, torch.bfloat16, given.device)
        for tokens in (16_384, 32_768):
            compare(tokens, 1024, torch.bfloat16, given.device, given.repeats)
    else:
        accuracy(128, 256, torch.float32, given.device)
        compare(2048, 256, torch.float32, given.device, given.repeats)


if __name__ == "__main__":
    main()

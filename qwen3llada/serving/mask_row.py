"""The mask token's row of an exported head: one that cannot be chosen.

Engines take the argmax over the whole vocabulary, the mask token included. (The sampler of this project gives it -inf.)
A zero row is no way out: its logit is 0, which wins where all other logits are negative.

The row is the mean of the rows of all text tokens, those with smaller ids than the mask.

**Claim.** Let x_v = w_v·h be the logits of the n text tokens for any hidden state h, and m the mask token's logit.

1. In exact arithmetic m = (w_1 + … + w_n)·h / n is the mean of the x_v. A mean is at most the largest of its terms, and
   equal to it only if all of them are equal. So m < max x_v unless every text token has the same logit.
2. In floating point let e be a bound of the error of a logit: of its dot product, of the row's own rounding to the
   tensor's type, and of the logit's rounding. If the mask still has the largest computed logit, then
   max x_v - m <= 2e exactly, and by Jensen's inequality sum_v exp(x_v) >= n·exp(m), so that the most likely token has

       p_max = exp(max x_v) / sum_v exp(x_v) <= exp(2e) / n.

   So the mask cannot win where any text token has a probability above exp(2e)/n: of Qwen3's 151,669 tokens, 0.0007 %
   for small e. Below that the distribution is uniform to within rounding.
3. Where computed logits tie, argmax takes the first, and the mask stands behind every text token. The same holds for an
   argmax over parts of the vocabulary, each on its own device, if the first of the best parts is taken.
4. In a softmax the mask token gets exp(m) / sum <= 1/(n + 1) by the same inequality: engines' confidences are those
   without it to within that factor, and so is what they draw at any temperature (divide all logits by it).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def losing_row(chunks: "Iterable[Tensor]", mask_token_id: int) -> "Tensor":
    """The mean [D] of the rows before `mask_token_id` of a head [V, D], given in `chunks` of rows, in their type.

    Summed in float64. Raises ValueError if there is no row before it.
    """
    import torch

    total, count, dtype = None, 0, None
    for chunk in chunks:
        rows = chunk[: max(0, mask_token_id - count)]
        if not len(rows):
            break
        part = rows.sum(0, dtype=torch.float64)
        total = part if total is None else total + part
        count, dtype = count + len(rows), chunk.dtype
    if total is None or dtype is None:
        raise ValueError(f"{mask_token_id=} must have rows before it")
    return (total / count).to(dtype)


def with_row(chunks: "Iterable[Tensor]", number: int, row: "Tensor") -> "Iterable[Tensor]":
    """The chunks of rows with row `number` replaced."""
    first = 0
    for chunk in chunks:
        if first <= number < first + len(chunk):
            chunk = chunk.clone()
            chunk[number - first] = row
        yield chunk
        first += len(chunk)

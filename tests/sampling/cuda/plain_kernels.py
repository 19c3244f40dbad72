"""Plain torch in place of the kernels of the sampler's programs, so that the programs run on a CPU."""

import torch
from torch import Tensor, nn

from qwen3llada.sampling import keyed_gumbel as noise
from qwen3llada.sampling.cuda.attention_ranges import Range
from qwen3llada.sampling.head import Head
from qwen3llada.sampling.remasking import annealed
from qwen3llada.sampling.unmasking import UNMASKING, Candidates
from tests.sampling.cuda.test_packed_model import gated, rms_norm, split
from tests.sampling.cuda.test_packed_model import norm_rope as norm_rope_only


def norm_rope(qkv, q_weight, k_weight, positions, angles, eps, heads, store=None) -> Tensor:
    """Units store their first keys and values as `layer_kernels.Store` says."""
    qk = norm_rope_only(qkv, q_weight, k_weight, positions.long(), angles, eps, heads)
    if store is not None:
        keys = qk.unflatten(1, (-1, heads.size))[:, heads.queries :]
        values, queries = split(qkv, heads)[2], len(qk) // len(store.firsts)
        for unit, (first, count) in enumerate(zip(store.firsts.tolist(), store.counts.tolist(), strict=True)):
            own, to = slice(unit * queries, unit * queries + count), slice(first, first + count)
            store.keys.view(-1, heads.keys, heads.size)[to] = keys[own]
            store.values.view(-1, heads.keys, heads.size)[to] = values[own]
    return qk


def attention(qk, qkv, prefix, ranges, heads, blocks=None, tiles=None) -> Tensor:
    """Every token of a unit sees what `ranges` says."""
    assert blocks is None
    units = ranges.shape[1]
    query, key = qk.unflatten(1, (-1, heads.size)).split([heads.queries, heads.keys], 1)
    query, key, value = (x.unflatten(0, (units, -1)) for x in (query, key, split(qkv, heads)[2]))
    out = torch.zeros_like(query)
    for unit in range(units):
        of = dict(zip(Range, ranges[:, unit].tolist(), strict=True))
        own, columns = slice(of[Range.OWN_LOW], of[Range.OWN_HIGH]), torch.arange(of[Range.LOW], of[Range.HIGH])
        columns = columns[(columns < of[Range.SKIP_LOW]) | (columns >= of[Range.SKIP_HIGH])]
        keys, values = (
            torch.cat([stored[of[Range.OWNER], columns], mine[unit, own]])
            for stored, mine in zip(prefix, (key, value), strict=True)
        )
        if len(keys):
            parts = (x.transpose(0, 1)[None] for x in (query[unit], keys, values))
            out[unit] = nn.functional.scaled_dot_product_attention(*parts, enable_gqa=True)[0].transpose(0, 1)
    return out.flatten(0, 1).flatten(1)


def rotated_attention(qkv, rotary, prefix, ranges, heads, blocks, store, *, stored_first) -> Tensor:
    assert stored_first == (store is not None)  # units of a running batch read what others store
    return attention(norm_rope(qkv, *rotary, heads, store), qkv, prefix, ranges, heads, blocks)


class PlainHead:
    """The kernels between the projection and the commits. Logits are kept from the reading to the proposing."""

    def __init__(self) -> None:
        self.read: dict[int, tuple[Tensor, Tensor | None]] = {}

    def read_logits(
        self, logits, without, places, masked, keys, steps, knobs, parts, *, form, mask_token, width
    ) -> None:
        self.mask_token = mask_token
        for row, place in enumerate(places.tolist()):
            self.read[place] = logits[row], None if without is None else without[row]

    def propose(self, parts, masked, keys, shares, steps, knobs, proposals, *, form, logarithmic) -> None:
        width = masked.shape[1]
        for unit, columns in enumerate(mask.nonzero()[:, 0] for mask in masked):
            places = unit * width + columns
            if not len(places):
                continue
            read = [self.read[place] for place in places.tolist()]
            values = knobs[:, unit].tolist()
            head = Head(
                project=lambda states: states.clone(),
                vocab_size=len(read[0][0]),
                mask_token_id=self.mask_token,
                temperature=values[0] if form.draws else 0.0,
                cfg_scale=values[1],
                remasking=form.remasking,
                position_temperature=values[3] if form.draws_positions else 0.0,
                entropy=True,
            )
            of_step = noise.step_keys(keys[unit, None], steps[unit, None], width)[:, 0, columns]
            heat = annealed(values[2], steps[unit], shares[unit]).expand(len(places))
            without = torch.stack([x for _, x in read]) if form.guided else None
            found = head.propose(torch.stack([x for x, _ in read]), without, *of_step, heat)
            proposals.tokens[places] = found.tokens.int()
            proposals.log_probs[places], proposals.scores[places] = found.log_probs, found.scores
            proposals.entropy[places] = found.entropy
        self.read.clear()

    @staticmethod
    def commit(proposals, canvas, masked, taken, confidence, origins, counts, steps, knobs, *, unmask) -> None:
        width = masked.shape[1]
        log_probs, scores, entropy = (x.view(masked.shape) for x in proposals[1:])
        for unit in range(len(masked)):
            at = slice(unit, unit + 1)
            chosen = UNMASKING[unmask].choose(
                Candidates(
                    masked=masked[at],
                    score=scores[at],
                    counts=counts[at, int(steps[unit])],
                    confidence=log_probs[at].exp(),
                    entropy=entropy[at],
                ),
                float(knobs[4, unit]),
            )
            taken[at] = chosen
            columns = chosen[0].nonzero()[:, 0]
            canvas.view(-1)[origins[unit] + columns] = proposals.tokens[unit * width + columns].long()
            confidence[unit, columns] = log_probs[unit, columns].exp().float()
            masked[at] &= ~chosen


def choose_masked(masked, column, room, *, queries, offset, guided):
    there, width = masked.flatten().nonzero()[:, 0], masked.shape[1]
    assert len(there) <= room
    places = torch.cat([there, there.new_zeros(room - len(there))])
    rows = places // width * queries + int(column) + offset + places % width
    return places, torch.cat([rows, rows + len(masked) * queries]) if guided else rows


def install(monkeypatch) -> None:
    """Let the programs call these."""
    from qwen3llada.sampling.cuda import packed_model, products, step_programs

    for kernel in (norm_rope, rotated_attention):
        monkeypatch.setattr(packed_model, kernel.__name__, kernel)
    for kernel in (rms_norm, gated):
        monkeypatch.setattr(products, kernel.__name__, kernel)
    head = PlainHead()
    for name, kernel in (
        ("read_logits", head.read_logits),
        ("propose", head.propose),
        ("commit_proposals", head.commit),
        ("choose_masked", choose_masked),
    ):
        monkeypatch.setattr(step_programs, name, kernel)

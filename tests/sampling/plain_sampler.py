"""The truth that the sampler is tested against: one row at a time, the whole canvas, every logit, nothing reused.

Written from the method's description alone, in loops and float64, and sharing no code with the package.
"""

import math

import numpy as np
import torch

GOLDEN = 0x9E3779B97F4A7C15


def splitmix(x):
    """SplitMix64's finaliser, of an unsigned number or an array of them."""
    with np.errstate(over="ignore"):
        x = np.uint64(x)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def fold(*values):
    """The key of a path of integers, starting from the root 0."""
    key = 0
    for value in values:
        key = int(splitmix(key ^ int(splitmix((value + GOLDEN) % 2**64))))
    return key


def uniforms(key, count):
    with np.errstate(over="ignore"):
        words = splitmix(np.uint64(key) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN))
    return ((words >> np.uint64(12)).astype(float) + 0.5) / 2**52


def gumbels(key, count):
    return -np.log(-np.log(uniforms(key, count)))


def sees(policy, prompt_length, block_length, window, q, k):
    if policy == "full":
        return True
    if policy in ("block_causal", "window"):  # blocks from position 0, including the prompt
        back = q // block_length - k // block_length
        return back >= 0 and (policy == "block_causal" or back <= window)
    assert policy == "block"
    if k < prompt_length:
        return True
    return q >= prompt_length and (q - prompt_length) // block_length == (k - prompt_length) // block_length


def visible(policy, prompt_length, length, block_length, window=4):
    """Which key (column) each query (row) sees. For a plan, one mask per layer type."""
    if policy.startswith("alternate:"):
        first, second = policy.removeprefix("alternate:").split(",")
        masks = {name: visible(name, prompt_length, length, block_length, window) for name in (first, second)}
        wide = "full" if "full" in masks else "block_causal"
        narrow = (set(masks) - {wide}).pop()
        return {"full_attention": masks[wide], "sliding_attention": masks[narrow]}
    seen = np.zeros((length, length), dtype=bool)
    for q in range(length):
        for k in range(length):
            seen[q, k] = sees(policy, prompt_length, block_length, window, q, k)
    return torch.from_numpy(seen)[None, None]


def all_logits(model, tokens, seen):
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens]), attention_mask=seen).logits[0].double().numpy()


def shares(total, parts):
    out = [total // parts] * parts
    for i in range(total % parts):
        out[i] += 1
    return out


class Stale:
    """`cache: dual`: within a block, keys and values outside of it are those of the block's first pass."""

    def __init__(self, model):
        self.kept, self.first, self.outside = {}, True, None
        self.linears = [p for layer in model.model.layers for p in (layer.self_attn.k_proj, layer.self_attn.v_proj)]

    def open(self, columns, length):
        self.first, self.outside = True, [i for i in range(length) if i not in columns]

    def logits(self, model, tokens, seen):
        def hook(linear, _, out):
            if self.first:
                self.kept[linear] = out.clone()
            out[:, self.outside] = self.kept[linear][:, self.outside]
            return out

        handles = [linear.register_forward_hook(hook) for linear in self.linears]
        try:
            return all_logits(model, tokens, seen)
        finally:
            self.first = False
            for handle in handles:
                handle.remove()


def score_of(name, probabilities, token, key, tau):
    """The score, and its logarithm as far as it has one."""
    p = probabilities[token]
    if name == "low_confidence":
        return p, math.log(p)
    if name == "random":
        u = uniforms(key, 1)[0]
        return u, math.log(u)
    if name == "random_topk":
        noisy = math.log(p) + tau * gumbels(key, 1)[0]
        return noisy, noisy
    if name == "entropy":
        return -entropy_of(probabilities), -entropy_of(probabilities)
    if name == "margin":
        second, first = sorted(probabilities)[-2:]
        return first - second, math.log(max(first - second, 1e-300))
    raise AssertionError(name)


def entropy_of(probabilities):
    positive = probabilities[probabilities > 0]
    return -float((positive * np.log(positive)).sum())


def chosen(candidates, count, params):
    """Columns to commit. A candidate is (score, column, token, probability, entropy)."""
    by_score = sorted(candidates, key=lambda c: (-c[0], c[1]))
    if params.unmask == "fixed":
        return {c[1] for c in by_score[:count]}
    best = {by_score[0][1]}
    if params.unmask == "threshold":
        return best | {c[1] for c in candidates if c[3] > params.confidence_threshold}
    if params.unmask == "factor":
        order = sorted(candidates, key=lambda c: (-c[3], c[1]))
        fits = [n for n in range(1, len(order) + 1) if (n + 1) * (1 - order[n - 1][3]) < params.factor]
    else:
        assert params.unmask == "entropy_bound"
        order = sorted(candidates, key=lambda c: (c[4], c[1]))
        entropies = [c[4] for c in order]
        fits = [n for n in range(1, len(order) + 1) if sum(entropies[:n]) - max(entropies[:n]) < params.entropy_bound]
    return {c[1] for c in order[: max(fits)]} if fits else best


def planned(masked, share, params):
    """(tokens to mask again, positions to commit) for each step of a block under fixed unmasking."""
    plan = [(0, n) for n in shares(masked, min(masked, share))]
    if params.remask == 0:
        return plan
    done, begin = 0, 0
    while begin == 0 or done < params.remask_start * masked:
        done += plan[begin][1]
        begin += 1
    again = min(params.remask, done)
    steps = len(plan) if params.remask_steps is None else params.remask_steps
    return plan[:begin] + [(again, again)] * steps + plan[begin:]


def sample(model, prompt, answer, *, params, policy, block_length, seed=0, row=0, ends=(), window=4):
    """The answer after decoding its masks, and the number of passes."""
    mask, canvas = model.config.mask_token_id, [*prompt, *answer]
    given = [i for i, token in enumerate(canvas) if i < len(prompt) or token != mask]
    seen = visible(policy, len(prompt), len(canvas), block_length, window)
    causal = "block_causal" in policy or "window" in policy
    counted_from = 0 if causal else len(prompt)
    starts = list(range(counted_from, len(canvas), block_length))
    first = len(prompt) // block_length if causal else 0  # number of the block in which the answer begins
    to_do = [b for b, s in enumerate(starts) if mask in canvas[s : s + block_length]]
    share = dict(zip(to_do, shares(params.steps, len(to_do)), strict=True))
    look = {half: Stale(model) for half in ("with", "without")} if params.cache == "dual" else None
    passes, last_decoded = 0, None
    for b in to_do:
        columns = range(starts[b], min(starts[b] + block_length, len(canvas)))
        mine = [i for i in columns if canvas[i] == mask]
        plan = planned(len(mine), share[b], params)
        total_steps = share[b] + len(plan) - min(len(mine), share[b])
        sure = {}  # probability of each committed token when it was committed
        for stale in look.values() if look else ():
            stale.open(columns, len(canvas))
        step, edits = 0, 0
        while True:
            again, count = plan[step] if params.unmask == "fixed" and step < len(plan) else (0, 0)
            for i in sorted(sure, key=lambda i: (sure[i], i))[:again]:
                canvas[i] = mask
                del sure[i]
            full = all(canvas[i] != mask for i in columns)
            if full and (params.edit_threshold == 0 or edits == params.max_post_edit_steps):
                break
            logits = look["with"].logits(model, canvas, seen) if look else all_logits(model, canvas, seen)
            if params.cfg_scale > 0:
                blank = [mask if i in given else token for i, token in enumerate(canvas)]
                without = look["without"].logits(model, blank, seen) if look else all_logits(model, blank, seen)
                logits = without + (params.cfg_scale + 1) * (logits - without)
            passes += 1
            logits[:, mask] = -np.inf
            tau = params.remasking_temperature * max(0.0, 1 - (step + 1) / total_steps)
            candidates, replaced = [], {}
            for i in mine:
                path = (seed, row, b - first, step), i - starts[b]
                exponentials = np.exp(logits[i] - logits[i].max())
                probabilities = exponentials / exponentials.sum()
                if canvas[i] != mask:
                    best = int(np.argmax(probabilities))
                    if 0 < params.edit_threshold < probabilities[best] and best != canvas[i]:
                        replaced[i] = best, probabilities[best]
                    continue
                noise = gumbels(fold(*path[0], 0, path[1]), len(logits[i])) if params.temperature > 0 else 0.0
                token = int(np.argmax(logits[i] + params.temperature * noise))
                score, log = score_of(params.remasking, probabilities, token, fold(*path[0], 1, path[1]), tau)
                if params.position_temperature > 0:
                    score = log + params.position_temperature * gumbels(fold(*path[0], 2, path[1]), 1)[0]
                candidates.append((score, i, token, probabilities[token], entropy_of(probabilities)))
            taken = chosen(candidates, count, params) if candidates else set()
            for _, i, token, probability, _ in candidates:
                if i in taken:
                    canvas[i], sure[i] = token, probability
            for i, (token, probability) in replaced.items():
                canvas[i], sure[i] = token, probability
            step += 1
            if full:
                edits += 1
                if not replaced:
                    break
        last_decoded = b
        if any(canvas[i] in ends for i in columns if i not in given):
            break
    after = starts[last_decoded] + block_length
    for i in range(after, len(canvas)):
        if canvas[i] == mask:
            canvas[i] = ends[0]
    decoded_ends = [i for i in range(len(prompt), len(canvas)) if i not in given and canvas[i] in ends]
    stop = decoded_ends[0] + 1 if decoded_ends else len(canvas)
    return canvas[len(prompt) : stop], passes


def published(model, prompt, *, steps, gen_length, block_length, temperature=0.0, cfg_scale=0.0, random=False):
    """LLaDA's `generate` as it was published, for a batch of equally long prompts [B, P], in its own terms.

    The whole canvas and all logits in each step; float64 Gumbel noise exp(l) / (-log u)^T; softmax in float64; the
    number of transferred tokens by `get_num_transfer_tokens`; a loop over rows with `topk`.
    """
    mask = model.config.mask_token_id
    x = torch.full((len(prompt), prompt.shape[1] + gen_length), mask)
    x[:, : prompt.shape[1]] = prompt
    prompt_index = x != mask
    num_blocks = gen_length // block_length
    steps_per_block = steps // num_blocks
    for block in range(num_blocks):
        begin = prompt.shape[1] + block * block_length
        end = begin + block_length
        mask_number = (x[:, begin:end] == mask).sum(1, keepdim=True)
        transfer = (mask_number // steps_per_block).repeat(1, steps_per_block)
        for row in range(len(x)):
            transfer[row, : int(mask_number[row]) % steps_per_block] += 1
        for i in range(steps_per_block):
            mask_index = x == mask
            with torch.no_grad():
                if cfg_scale > 0:
                    blank = x.clone()
                    blank[prompt_index] = mask
                    logits, without = model(input_ids=torch.cat([x, blank])).logits.chunk(2)
                    logits = without + (cfg_scale + 1) * (logits - without)
                else:
                    logits = model(input_ids=x).logits
            logits[..., mask] = -torch.inf
            noisy = logits.double()
            if temperature > 0:
                noisy = noisy.exp() / (-torch.log(torch.rand_like(noisy))) ** temperature
            x0 = noisy.argmax(-1)
            if random:
                x0_p = torch.rand(x0.shape, dtype=torch.float64)
            else:
                x0_p = torch.softmax(logits.double(), -1).gather(-1, x0[..., None]).squeeze(-1)
            x0_p[:, end:] = -torch.inf
            x0 = torch.where(mask_index, x0, x)
            confidence = torch.where(mask_index, x0_p, -torch.inf)
            chosen = torch.zeros_like(mask_index)
            for row in range(len(x)):
                chosen[row, confidence[row].topk(int(transfer[row, i])).indices] = True
            x[chosen] = x0[chosen]
    return x

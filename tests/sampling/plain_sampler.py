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
    words = splitmix(np.array([(key + (i + 1) * GOLDEN) % 2**64 for i in range(count)], dtype=np.uint64))
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


def score_of(name, probabilities, token, key, tau):
    p = probabilities[token]
    if name == "low_confidence":
        return p
    if name == "random":
        return uniforms(key, 1)[0]
    if name == "random_topk":
        return math.log(p) + tau * gumbels(key, 1)[0]
    if name == "entropy":
        positive = probabilities[probabilities > 0]
        return float((positive * np.log(positive)).sum())
    if name == "margin":
        second, first = sorted(probabilities)[-2:]
        return first - second
    raise AssertionError(name)


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
    passes, last_decoded = 0, None
    for b in to_do:
        columns = range(starts[b], min(starts[b] + block_length, len(canvas)))
        plan = shares(sum(canvas[i] == mask for i in columns), share[b])
        step = 0
        while any(canvas[i] == mask for i in columns):
            logits = all_logits(model, canvas, seen)
            if params.cfg_scale > 0:
                blank = [mask if i in given else token for i, token in enumerate(canvas)]
                without = all_logits(model, blank, seen)
                logits = without + (params.cfg_scale + 1) * (logits - without)
            passes += 1
            logits[:, mask] = -np.inf
            tau = params.remasking_temperature * max(0.0, 1 - (step + 1) / share[b])
            candidates = []
            for i in columns:
                if canvas[i] != mask:
                    continue
                noise = gumbels(fold(seed, row, b - first, step, 0, i - starts[b]), len(logits[i]))
                token = int(np.argmax(logits[i] + params.temperature * noise))
                exponentials = np.exp(logits[i] - logits[i].max())
                probabilities = exponentials / exponentials.sum()
                key = fold(seed, row, b - first, step, 1, i - starts[b])
                score = score_of(params.remasking, probabilities, token, key, tau)
                candidates.append((score, i, token, probabilities[token]))
            candidates.sort(key=lambda c: (-c[0], c[1]))
            for rank, (_, i, token, probability) in enumerate(candidates):
                if params.unmask == "fixed":
                    take = rank < plan[step]
                else:
                    take = rank == 0 or probability > params.confidence_threshold
                if take:
                    canvas[i] = token
            step += 1
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

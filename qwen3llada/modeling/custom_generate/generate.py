"""Generation by iterative unmasking, as plain as it can be: one row at a time, every pass over the whole canvas.

    model = AutoModelForMaskedLM.from_pretrained(path, trust_remote_code=True)
    tokens = model.generate(**tokenizer("…", return_tensors="pt"), max_new_tokens=64, steps=32)

Travels with every checkpoint, so it imports torch alone. The sampler of the package qwen3llada gives the same tokens in
float32, many times faster: it keeps keys and values, decodes a batch at once and runs CUDA graphs.
"""

import torch

POLICIES = ("full", "block", "block_causal", "window")


@torch.no_grad()
def generate(
    inputs=None,
    *,
    model,
    input_ids=None,
    attention_mask=None,
    generation_config=None,
    max_new_tokens=128,
    steps=None,
    block_length=None,
    temperature=0.0,
    confidence_threshold=None,
    eos_token_id=None,
    **others,
):
    """Prompts and their answers: [B, P + max_new_tokens], EOS after an answer's end.

    input_ids [B, P], or `inputs`: the prompts; attention_mask [B, P]: 0 at padding, which must be on the left.
    max_new_tokens: tokens of an answer. steps: forward passes for it, split evenly over its blocks; by default one for
        each token. block_length: tokens of a block; by default that of the training.
    temperature: of Gumbel noise from torch's global generator; 0 takes the most likely token.
    confidence_threshold: if given, every token with a probability above it is kept, and `steps` is not used.
    eos_token_id: what ends an answer, one id or several; by default the config's. An empty list: nothing does.
    Raises ValueError for any other argument of Transformers' `generate`, and for values that cannot be.
    """
    prompts = input_ids if input_ids is not None else inputs
    config = model.config
    check_arguments(prompts, generation_config, others, max_new_tokens, temperature, config.attention_policy)
    block_length = block_length or config.block_length
    ends = config.eos_token_id if eos_token_id is None else eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    rows = []
    for number, prompt in enumerate(prompts):
        if attention_mask is not None:
            prompt = prompt[attention_mask[number].bool()]
        answer = answer_one(
            model,
            prompt,
            max_new_tokens,
            steps or max_new_tokens,
            block_length,
            temperature,
            confidence_threshold,
            ends,
        )
        rows.append(torch.cat([prompts[number], answer]))
    return torch.stack(rows)


def check_arguments(prompts, generation_config, others, max_new_tokens, temperature, policy):
    """Raises ValueError for arguments of `generate` that cannot be, and for a policy that only the package has."""
    if prompts is None or prompts.dim() != 2:
        raise ValueError("input_ids must be given, as token ids [B, P]")
    unknown = sorted(name for name, value in others.items() if value not in (None, False))
    if generation_config is not None:
        unknown.append("generation_config")
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not used when a model generates by unmasking; leave it out")
    if max_new_tokens < 1 or temperature < 0:
        raise ValueError(f"{max_new_tokens=} must be at least 1 and {temperature=} at least 0")
    if policy not in POLICIES:
        raise ValueError(f"attention policy {policy} is not one of {', '.join(POLICIES)}: use the package qwen3llada")


def answer_one(model, prompt, new, steps, block_length, temperature, threshold, ends):
    """The answer [new] to one prompt [P]."""
    config, length = model.config, len(prompt)
    canvas = torch.cat([prompt, prompt.new_full((new,), config.mask_token_id)])
    seen = visible(config, length, len(canvas), block_length).to(canvas.device)
    # Under the causal policies blocks are counted from the prompt's first token, else from its end.
    from_zero = config.attention_policy in ("block_causal", "window")
    first = length // block_length * block_length if from_zero else length
    starts = list(range(first, len(canvas), block_length))
    if threshold is None and steps < len(starts):
        raise ValueError(f"{steps=} must be at least the number of blocks to decode, {len(starts)}")
    for start, share in zip(starts, even(steps, len(starts)), strict=True):
        block = slice(start, min(start + block_length, len(canvas)))
        masked = int((canvas[block] == config.mask_token_id).sum())
        counts = even(masked, min(masked, share)) if threshold is None else None
        while (open_ := canvas[block] == config.mask_token_id).any():
            logits = model(input_ids=canvas[None], attention_mask=seen).logits[0, block].float()
            logits[:, config.mask_token_id] = -torch.inf  # the mask token is never an answer
            tokens, log_prob = propose(logits, temperature)
            order = log_prob.masked_fill(~open_, -torch.inf).argsort(descending=True, stable=True)
            keep = torch.zeros_like(open_)
            keep[order[: counts.pop(0) if counts else 1]] = True
            if threshold is not None:
                keep |= open_ & (log_prob.exp() > threshold)
            canvas[block] = torch.where(keep, tokens, canvas[block])
        if any(int(token) in ends for token in canvas[max(start, length) : block.stop]):
            break
    answer = canvas[length:]
    found = [i for i, token in enumerate(answer.tolist()) if token in ends]
    if found:
        answer[found[0] + 1 :] = answer[found[0]]
    return answer


def propose(logits, temperature):
    """A token for each position of logits [W, V], and the natural log of its probability: [W] int64, [W] float64."""
    top, best = logits.max(-1)
    tokens = best
    if temperature > 0:  # Gumbel-max, in float64: float32 noise distorts the distribution (arXiv 2409.02908)
        noise = torch.rand_like(logits, dtype=torch.float64).clamp_(min=1e-300)
        tokens = (logits - temperature * torch.log(-torch.log(noise))).argmax(-1)
    # The sum of all but the largest resolves probabilities next to 1.
    tail = (logits - top[:, None]).exp().scatter(-1, best[:, None], 0.0).sum(-1).double()
    chosen = logits.gather(-1, tokens[:, None])[:, 0]
    return tokens, (chosen - top).double() - torch.log1p(tail)


def visible(config, prompt_length, length, block_length):
    """Which key (last axis) each query sees: [1, 1, length, length] bool."""
    position = torch.arange(length)
    if config.attention_policy in ("block_causal", "window"):
        block = position // block_length
        query, key = block[:, None], block[None, :]
        seen = key <= query
        if config.attention_policy == "window":
            seen &= key >= query - config.window_blocks
    elif config.attention_policy == "block":
        block = ((position - prompt_length) // block_length).masked_fill(position < prompt_length, -1)
        seen = (block[None, :] == -1) | (block[:, None] == block[None, :])
    else:
        seen = torch.ones(length, length, dtype=torch.bool)
    return seen[None, None]


def even(total, parts):
    """`total` in `parts` integers that differ by at most one, the larger first."""
    return [total // parts + (i < total % parts) for i in range(parts)]

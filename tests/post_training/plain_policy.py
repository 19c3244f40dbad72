"""The policy loss written out: one pass over one canvas at a time, whole logits, Python loops."""

import torch

from qwen3llada.modeling.attention import attention_bias


def log_probs(model, visible, policy, block_length):
    """log q [L, V] where the model sees the list `visible`."""
    bias = attention_bias(policy, torch.tensor([0]), len(visible), block_length)
    return model(input_ids=torch.tensor([visible]), attention_mask=bias).logits[0].log_softmax(-1)


def token_log_probs(model, rollout, masked, predicted, *, policy, block_length, gen_length, mask):
    """Log-probabilities of the predicted tokens of one pass, in order."""
    prompt, answer = rollout.prompt_tokens, rollout.tokens
    clean = prompt + answer
    noisy = prompt + [mask if hidden else token for token, hidden in zip(answer, masked, strict=True)]
    found, seen = [], {}
    for i, wanted in enumerate(predicted):
        if not wanted:
            continue
        position = len(prompt) + i
        if policy == "block_causal":  # the block as it was, after clean earlier blocks; nothing after it
            first = position // block_length * block_length
            visible = clean[:first] + noisy[first : first + block_length]
        else:
            visible = noisy + [mask] * (gen_length - len(answer))
        if tuple(visible) not in seen:
            seen[tuple(visible)] = log_probs(model, visible, policy, block_length)
        found.append(seen[tuple(visible)][position, answer[i]])
    return found


def surrogate(log_p, old, advantage, low, high):
    ratio = (log_p - old).exp()
    bounded = min(max(ratio.item(), 1 - low), 1 + high)
    if advantage * ratio.item() <= advantage * bounded:
        return -ratio * advantage
    return torch.tensor(-bounded * advantage)


def divergence(log_p, reference):
    return (reference - log_p).exp() - (reference - log_p) - 1

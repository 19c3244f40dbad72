"""What released engines do with an exported folder, in plain loops, sharing no code with the package.

The folder is loaded as the plain Qwen3 that its tensors are. Blocks are counted from position 0 of the prompt; a block
is denoised against the cached keys and values of those before it, and gets one more clean pass for its own.
"""

import copy
import json

import torch
from safetensors.torch import load_file
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM


def load(folder):
    """The tensors of an exported folder as Transformers' own Qwen3, by the values of its config.json."""
    values = json.loads((folder / "config.json").read_text())
    theta = values.pop("rope_theta")
    for name in ("architectures", "auto_map", "model_type", "rope_scaling", "torch_dtype", "transformers_version"):
        values.pop(name)
    config = Qwen3Config(**values, rope_parameters={"rope_type": "default", "rope_theta": theta})
    model = Qwen3ForCausalLM(config).eval()
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    model.load_state_dict(tensors)  # strict: lm_head.weight, too
    return model


@torch.no_grad()
def run(model, cache, tokens, first, *, store):
    """Logits [n, V] of `tokens` at positions from `first` on, which see the cache and one another."""
    cache = cache if store else copy.deepcopy(cache)
    seen = torch.ones(1, 1, len(tokens), first + len(tokens), dtype=torch.bool)
    positions = torch.arange(first, first + len(tokens))[None]
    output = model(
        input_ids=torch.tensor([tokens]),
        attention_mask=seen,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    return output.logits[0]


def serve(model, prompt, new_tokens, *, block, mask, ends, strategy, steps=None, threshold=None):
    """The answer up to its EOS: `low_confidence_static` in `steps` for a block, or `_dynamic` by `threshold`."""
    cache, canvas = DynamicCache(config=model.config), [*prompt, *[mask] * new_tokens]
    whole = len(prompt) // block * block
    for first in range(0, whole, block):  # prefill: block by block, each sees itself and what is cached
        run(model, cache, canvas[first : first + block], first, store=True)
    for first in range(whole, len(canvas), block):
        columns = list(range(first, min(first + block, len(canvas))))
        masked = [i for i in columns if canvas[i] == mask]
        shares = []
        if strategy == "low_confidence_static":
            passes = min(steps, len(masked))
            shares = [len(masked) // passes + (i < len(masked) % passes) for i in range(passes)]
        while masked := [i for i in columns if canvas[i] == mask]:
            logits = run(model, cache, [canvas[i] for i in columns], first, store=False)
            chosen = logits.argmax(-1)  # over the whole vocabulary, the mask token included
            best_logit = logits.max(-1, keepdim=True).values
            sure = 1 / (logits - best_logit).exp().sum(-1, dtype=torch.float64)
            best = sorted(masked, key=lambda i: -sure[i - first])
            if strategy == "low_confidence_static":
                kept = best[: shares.pop(0)]
            else:
                kept = [i for i in masked if sure[i - first] > threshold] or best[:1]
            for i in kept:
                canvas[i] = int(chosen[i - first])
        if any(canvas[i] in ends for i in columns if i >= len(prompt)):
            break
        run(model, cache, [canvas[i] for i in columns], first, store=True)
    answer = [token for token in canvas[len(prompt) :] if token != mask]
    found = [i for i, token in enumerate(answer) if token in ends]
    return answer[: found[0] + 1] if found else answer

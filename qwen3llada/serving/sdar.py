"""The format "sdar" (arXiv 2510.06303): dense Qwen3 with blocks counted from position 0.

Engines count blocks from the first token of the prompt, show each block itself and all earlier ones, and predict the
token at a masked position. That is policy `block_causal` and no other.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3llada.errors import InputError

MASK_TOKEN_ID = 151669  # written in the engines' code
POLICY = "block_causal"
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "max_position_embeddings"),
    *("initializer_range", "max_window_layers"),
)


def check_exportable(config: Any, folder: Path) -> None:
    """Raises InputError naming the first property of a `Qwen3LLadaConfig` that the engines would compute otherwise."""
    if config.mask_token_id != MASK_TOKEN_ID:
        raise InputError(
            f"{folder}: mask_token_id={config.mask_token_id} must be {MASK_TOKEN_ID}, which the engines have in their"
            " code (what convert's mask_token=auto gives Qwen3's own tokenizer)"
        )
    policy = config.attention_policy
    if isinstance(policy, str):
        if policy != POLICY:
            raise InputError(f"{folder}: attention policy {policy} must be {POLICY}, which is what the engines compute")
    elif set(policy) != {POLICY}:
        raise InputError(f"{folder}: attention policies {sorted(set(policy))} must be {POLICY} in every layer")
    if config.attention_bias:
        raise InputError(f"{folder}: attention_bias=true must be false: no engine was seen to compute it rightly")
    if config.hidden_act != "silu":
        raise InputError(f"{folder}: hidden_act={config.hidden_act} must be silu")
    if config.sliding_window is not None or config.use_sliding_window:
        raise InputError(f"{folder}: sliding_window={config.sliding_window} must be null")
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind != "default":
        raise InputError(f"{folder}: rope_type={kind} must be default: rope_scaling is null in this format")


def config_values(config: Any, eos: int, dtype: str) -> Mapping[str, Any]:
    """config.json of the export: of a `Qwen3LLadaConfig`, the id that ends an answer, and the tensors' type."""
    values = {name: getattr(config, name) for name in SIZES}
    return {
        "architectures": ["SDARForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_sdar.SDARConfig"},
        "model_type": "sdar",
        **values,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rope_theta": float(config.rope_parameters["rope_theta"]),
        "rope_scaling": None,
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos,
        "pad_token_id": eos if config.pad_token_id is None else config.pad_token_id,
        "torch_dtype": dtype,
        # Transformers reads this before it decides whether a tokenizer is an old one.
        "transformers_version": config.transformers_version,
        # To inform: the engines are told the block length when they are started, and know the mask.
        "block_size": config.block_length,
        "mask_token_id": config.mask_token_id,
    }


def commands(served: str, block_length: int) -> str:
    """SERVING.md: the command lines of each engine for the folder `served` and blocks of `block_length` tokens."""
    return COMMANDS.replace("DIR", served).replace("BLOCK", str(block_length))


COMMANDS = """# Serving this folder

Blocks have BLOCK tokens and are counted from the first token of the prompt. The engines must be told so: none of them
reads `block_size` in config.json. The lines below were written from the engines' documentation and released sources
(SGLang 0.5.23, LMDeploy 0.18.0); no engine was started when this folder was written.

## SGLang

`dllm.yaml` lies beside this file; `threshold` is the confidence from which a token is kept.

One GPU (`--max-running-requests` is 1 unless set; `--dtype bfloat16` because `auto` turns float32 into float16):

    python -m sglang.launch_server --model-path DIR --trust-remote-code --dtype bfloat16 \\
      --dllm-algorithm LowConfidence --dllm-algorithm-config DIR/dllm.yaml --max-running-requests 64 \\
      --host 127.0.0.1 --port 30000

Several GPUs of one machine: add `--tp-size 4`. Pipeline parallelism, LoRA and prefill/decode disaggregation do not
work for these models.

Several machines: the same line on each, with `--host 0.0.0.0`, and in front of them SGLang's router:

    python -m sglang_router.launch_router --worker-urls http://node1:30000 http://node2:30000 --port 8000

LowConfidence takes the most likely token whatever the request's temperature.

## LMDeploy

One GPU. `low_confidence_static` keeps an even share of a block in each of the denoising steps,
`low_confidence_dynamic` all tokens above the threshold:

    lmdeploy serve api_server DIR --backend pytorch --trust-remote-code --dtype bfloat16 \\
      --dllm-block-length BLOCK --dllm-unmasking-strategy low_confidence_dynamic \\
      --dllm-denoising-steps BLOCK --dllm-confidence-threshold 0.85 --server-name 127.0.0.1 --server-port 23333

Several GPUs of one machine: add `--tp 4`. Temperature and top-p of a request are used, log probabilities are not given.

Several machines: LMDeploy's proxy, and the same line on each machine with `--proxy-url`:

    lmdeploy serve proxy --server-name 0.0.0.0 --server-port 8000
    lmdeploy serve api_server DIR … --server-name 0.0.0.0 --proxy-url http://proxy:8000

## JetEngine

From its sources (github.com/Labman42/JetEngine), in Python:

    from jetengine import LLM, SamplingParams

    llm = LLM("DIR", tensor_parallel_size=1, mask_token_id=151669, block_length=BLOCK)
    params = SamplingParams(temperature=1.0, topk=1, topp=1.0, max_tokens=256, block_length=BLOCK,
                            denoising_steps=BLOCK, remasking_strategy="low_confidence_dynamic", dynamic_threshold=0.9)

## Diffulex

From its sources (github.com/SJTU-DENG-Lab/Diffulex), which name SDAR among the models that they load; its documentation
has the server's options: https://sjtu-deng-lab.github.io/Diffulex/user_guide/server.html
"""

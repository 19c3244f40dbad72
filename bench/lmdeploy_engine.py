"""LMDeploy's PyTorch engine on an exported folder, for comparisons. Used by processes that end with `os._exit`.

LMDeploy 0.18 runs beside torch 2.11 without TurboMind. Closing its engine can hang, and nothing is left to save.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

ENVIRONMENT = {
    "LMDEPLOY_ENABLE_CHECK_ENV": "0",  # the check starts one more process with torch
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
CACHE = 0.3  # of the memory that is free when the weights are loaded
SESSION = 8192  # most tokens of a prompt with its answer
THRESHOLD = 0.85  # not used by low_confidence_static, which keeps an even share of a block in each step


def engine_options(block: int, batches: Sequence[int], dtype: str = "bfloat16") -> dict[str, Any]:
    """Arguments of `PytorchEngineConfig` for blocks of `block` tokens and batches of these sizes."""
    return {
        "dtype": dtype,
        "dllm_block_length": block,
        "dllm_unmasking_strategy": "low_confidence_static",
        "dllm_denoising_steps": block,
        "dllm_confidence_threshold": THRESHOLD,
        "cache_max_entry_count": CACHE,
        "max_batch_size": max(batches),
        "cudagraph_capture_batch_sizes": sorted(batches),
        "session_len": SESSION,
        "max_prefill_token_num": SESSION,
        "enable_prefix_caching": False,
        "enable_metrics": False,
    }


class Engine:
    """A running engine. `steps` may change between calls: the engine reads it in each step."""

    def __init__(self, folder: Path, block: int, batches: Sequence[int], dtype: str = "bfloat16") -> None:
        from lmdeploy import PytorchEngineConfig, pipeline
        from lmdeploy.pytorch.strategies.dllm.unmasking import UnmaskingProcessor

        self.block = self.steps = block
        self.states: list[dict[str, Any]] | None = None  # what `record` asks for
        UnmaskingProcessor._get_denoise_num = lambda processor: max(1, self.block // self.steps)  # its own rule
        self._watch(UnmaskingProcessor)
        begin = time.perf_counter()
        config = PytorchEngineConfig(**engine_options(block, batches, dtype))
        self.pipeline = pipeline(str(folder), backend_config=config, trust_remote_code=True, log_level="WARNING")
        self.seconds = time.perf_counter() - begin

    def answer(self, prompts: Sequence[Sequence[int]], length: int) -> list[list[int]]:
        """Greedy answers of `length` tokens, all prompts at once."""
        from lmdeploy import GenerationConfig

        config = GenerationConfig(max_new_tokens=length, ignore_eos=True, do_sample=False)
        requests = (
            {
                "session_id": self.pipeline.session_mgr.get(),
                "messages": None,
                "input_ids": list(prompt),
                "gen_config": config,
                "do_preprocess": False,
                "stream_response": False,
            }
            for prompt in prompts
        )
        answers = []
        for parts in self.pipeline._infer(requests, multiplex=False):
            whole = None
            for part in parts:
                whole = whole.extend(part) if whole else part
            if whole is None or whole.finish_reason == "error":
                raise RuntimeError(f"LMDeploy gave no answer: {whole and whole.error_message}")
            answers.append(list(whole.token_ids))
        return answers

    def record(self, prompt: Sequence[int], length: int) -> tuple[list[int], list[dict[str, Any]]]:
        """An answer, and the engine's state at each step: see `engine_agreement.State`."""
        import torch

        self.states = []
        answer = self.answer([prompt], length)[0]
        time.sleep(0.2)  # it computes ahead: steps that nobody waits for end
        torch.cuda.synchronize()
        states, self.states = self.states, None
        return answer, [{name: value.tolist() for name, value in state.items()} for state in states]

    def _watch(self, processor: Any) -> None:
        original = processor.__call__

        def call(one: Any, logits: Any, input_ids: Any, token_ids: Any, dllm_mask: Any) -> Any:
            states = self.states
            before = (input_ids.clone(), dllm_mask == 0, token_ids.clone()) if states is not None else None
            result = original(one, logits, input_ids, token_ids, dllm_mask)
            if states is not None and before is not None:
                tokens, masked, proposed = before
                kept = masked & (result[0] != 0)
                states.append({"tokens": tokens, "masked": masked, "proposed": proposed, "kept": kept})
            return result

        processor.__call__ = call


def run_to_exit(part: Callable[[], None]) -> NoReturn:
    """Run the only part of a process, and end the process without its exit handlers."""
    status = 0
    try:
        part()
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

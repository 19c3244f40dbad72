"""Qwen3's configuration with the additions of a masked diffusion model.

Saved beside every checkpoint for `trust_remote_code`, so this file imports only Transformers.
"""

from transformers import Qwen3Config

REMOTE_CODE = {
    "AutoConfig": "configuration_qwen3llada.Qwen3LLadaConfig",
    "AutoModel": "modeling_qwen3llada.Qwen3LLadaModel",
    "AutoModelForMaskedLM": "modeling_qwen3llada.Qwen3LLadaForMaskedLM",
}


class Qwen3LLadaConfig(Qwen3Config):
    """A `Qwen3Config` with the mask token and the facts about training that sampling needs.

    mask_token_id: id of a masked token, in [0, vocab_size). None only while no model exists.
    attention_policy, block_length, window_blocks: attention in training (see `attention.plan`; one name, or one per
        layer), tokens per block, and the number of blocks that policy `window` sees before its own.
    noise_type: what corrupted tokens became in training (see `noise_types.NOISE_TYPES`).
    prompt_template: how a question became a prompt in training, `plain` or `chat`.
    Raises ValueError for a mask id outside the vocabulary, a block length below 1, causal or sliding-window attention.
    """

    model_type = "qwen3llada"

    mask_token_id: int | None = None
    use_cache: bool = False
    is_causal: bool = False
    attention_policy: str | list[str] = "full"
    block_length: int = 32
    window_blocks: int = 4
    noise_type: str = "mask"
    prompt_template: str = "plain"
    auto_map: dict | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.auto_map is None:
            self.auto_map = dict(REMOTE_CODE)
        if self.mask_token_id is not None and not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(f"{self.mask_token_id=} must be a row of the embedding, in [0, {self.vocab_size})")
        if self.block_length < 1:
            raise ValueError(f"{self.block_length=} must be at least 1")
        if self.is_causal:
            raise ValueError(f"{self.is_causal=} must be False: a masked diffusion model sees both sides")
        if self.sliding_window is not None and "sliding_attention" in (self.layer_types or ()):
            raise ValueError(
                f"{self.sliding_window=} must be None: layers with a sliding window are not supported, since every "
                "position has to see the whole sequence"
            )


Qwen3LLadaConfig.register_for_auto_class()

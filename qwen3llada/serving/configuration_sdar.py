"""The configuration of an exported block diffusion model, for the engines' `trust_remote_code`.

A plain `PretrainedConfig`: `Qwen3Config` of Transformers 5 keeps RoPE's base in `rope_parameters` alone, and an engine
that reads `rope_theta` from it would silently compute with 10,000. Written beside an export, so this file imports
Transformers alone.
"""

from transformers import PretrainedConfig


class SDARConfig(PretrainedConfig):
    """Sizes of a dense Qwen3, with `rope_theta` as an attribute of its own. The values are those of config.json."""

    model_type = "sdar"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - as Transformers spells it
    rope_scaling = None  # an attribute, where Transformers 5 has a property that gives `rope_parameters`

    def __init__(
        self,
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        hidden_act="silu",
        max_position_embeddings=32768,
        initializer_range=0.02,
        rms_norm_eps=1e-6,
        use_cache=True,
        rope_theta=1000000.0,
        rope_scaling=None,
        attention_bias=False,
        attention_dropout=0.0,
        use_sliding_window=False,
        sliding_window=None,
        max_window_layers=28,
        block_size=32,
        mask_token_id=151669,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self.attention_bias = attention_bias
        self.attention_dropout = attention_dropout
        self.use_sliding_window = use_sliding_window
        self.sliding_window = sliding_window
        self.max_window_layers = max_window_layers
        self.block_size = block_size
        self.mask_token_id = mask_token_id
        super().__init__(**kwargs)

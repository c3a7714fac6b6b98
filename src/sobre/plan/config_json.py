"""A config.json as it was written by somebody else: every key that a count rests on has its kind, or is named.

Families read their keys as they stand (models/families); a size that is text, a fraction or null would end as a
traceback there, or as a number of parameters that is none.
"""

import json
from math import isfinite
from pathlib import Path
from typing import Any

from sobre.errors import ConfigError

SIZES = frozenset(
    "hidden_size n_embd d_model num_hidden_layers n_layer n_layers num_attention_heads n_head n_heads intermediate_size"
    " intermediate_size_mlp n_inner ffn_dim ffn_hidden_size head_dim vocab_size max_position_embeddings n_positions"
    " max_seq_len moe_intermediate_size num_experts_per_tok num_experts_per_token moe_k kv_lora_rank v_head_dim"
    " qk_nope_head_dim qk_rope_head_dim index_head_dim index_n_heads index_topk sliding_window_pattern"
    " decoder_sparse_step interleave_moe_layer_step moe_layer_interval word_embed_proj_dim".split()
)
"""Whole numbers above 0."""
COUNTS = frozenset(
    "num_experts n_routed_experts num_local_experts moe_num_experts n_shared_experts num_shared_experts"
    " moe_num_shared_experts shared_expert_intermediate_size first_k_dense_replace num_nextn_predict_layers n_group"
    " topk_group q_lora_rank sliding_window num_key_value_heads num_kv_heads num_ln_in_parallel_attn rotary_dim"
    " moe_layer_start_index".split()
)
"""Whole numbers from 0 on."""
SWITCHES = frozenset(
    "tie_word_embeddings attention_bias mlp_bias use_bias bias qkv_bias attention_out_bias enable_bias lm_head_bias"
    " use_qk_norm use_sliding_window new_decoder_architecture parallel_attn multi_query layer_norm_elementwise_affine"
    " do_layer_norm_before norm_topk_prob rope_interleave".split()
)
NUMBERS = frozenset("rope_theta partial_rotary_factor rms_norm_eps routed_scaling_factor initializer_range".split())
TABLES = frozenset("rope_parameters rope_scaling text_config traits memory".split())
LISTS = {"layer_types": str, "mlp_only_layers": int}
LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
MOST, MOST_LAYERS = 2**31, 10_000
"""More is no model of anybody's."""
MEANT = frozenset(("q_lora_rank", "n_shared_experts"))
"""Where null says something; elsewhere it is as good as absent."""


def read(path: Path) -> dict[str, Any]:
    """The file's tree, checked."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a readable config.json: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config.json is an object, and this is a {type(tree).__name__}")
    return checked(tree, str(path)) if "model_type" in tree or "text_config" in tree else tree


def checked(tree: dict[str, Any], where: str) -> dict[str, Any]:
    """The tree without nulls that say nothing; raises a ConfigError that names the key that cannot be."""
    if not isinstance(tree.get("model_type", ""), str):
        raise ConfigError(f"{where}: model_type={tree['model_type']!r} must be text")
    kept = {key: value for key, value in tree.items() if value is not None or key in MEANT}
    for key, value in kept.items():
        if value is not None and (wanted := _wanted(key, value)):
            raise ConfigError(f"{where}: {key}={json.dumps(value)[:60]} must be {wanted}")
    n_layers = next((kept[key] for key in LAYERS if key in kept), 0)
    if 0 < len(kept.get("layer_types", ())) < n_layers:
        raise ConfigError(f"{where}: layer_types has {len(kept['layer_types'])} entries for {n_layers} layers")
    for key in ("rope_parameters", "rope_scaling"):
        _check_rope(kept.get(key, {}), f"{where}: {key}")
    if "text_config" in kept:
        kept["text_config"] = checked(kept["text_config"], f"{where}: text_config")
    return kept


def _wanted(key: str, value: Any) -> str:
    """What the value should be; empty when it is."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if key in LAYERS and not (is_whole and 0 < value <= MOST_LAYERS):
        return f"a whole number from 1 to {MOST_LAYERS:,}"
    if key in SIZES and not (is_whole and 0 < value <= MOST):
        return "a whole number above 0"
    if key in COUNTS and not (is_whole and 0 <= value <= MOST):
        return "a whole number, 0 or more"
    if key in SWITCHES and not isinstance(value, bool):
        return "true or false"
    if key in NUMBERS and not _is_number(value):
        return "a number"
    if key in TABLES and not isinstance(value, dict):
        return "an object"
    if key in LISTS and not (isinstance(value, list) and all(type(one) is LISTS[key] for one in value)):
        return f"a list of {'words' if LISTS[key] is str else 'whole numbers'}"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _check_rope(table: dict[str, Any], where: str) -> None:
    for key, value in table.items():
        is_size = key not in ("rope_type", "type") and not isinstance(value, list | dict | bool | None)
        if is_size and not _is_number(value):
            raise ConfigError(f"{where}: {key}={value!r} must be a number")

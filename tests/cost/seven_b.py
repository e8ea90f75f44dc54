"""MPT-7B's shape, as the recipe that the estimates are tried on."""

from __future__ import annotations

from typing import Any

RECIPE: dict[str, Any] = {
    "model": {"d_model": 4096, "n_heads": 32, "n_layers": 32, "vocab_size": 50432, "attn_config": {"alibi": True}},
    "max_seq_len": 2048,
    "global_train_batch_size": 1024,
    "device_train_microbatch_size": 4,
    "max_duration": "1000ba",
    "precision": "amp_bf16",
    "fsdp_config": {"sharding_strategy": "FULL_SHARD", "mixed_precision": "PURE"},
}

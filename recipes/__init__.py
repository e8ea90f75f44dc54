"""Recipes: read, checked, planned, trained, billed, exported. data_prep/ and eval/ stand beside it."""

import importlib.util

_flash_attn = importlib.util.find_spec("flash_attn")
if _flash_attn is not None and _flash_attn.origin is None:
    # flash-attn-4 without flash-attn 2: a namespace, in which LLM Foundry looks for a version when it is imported
    import flash_attn  # type: ignore[import-not-found]

    flash_attn.__version__ = "0"

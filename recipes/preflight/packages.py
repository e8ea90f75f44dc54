"""Packages that a recipe needs and that are not installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from recipes.config.keys import KeyPath
from recipes.config.load import Recipe
from recipes.installing import install_command

PACKAGE_FOR_SCHEME = {
    "s3": "boto3",
    "gs": "google-cloud-storage",
    "oci": "oci",
    "azure": "azure-storage-blob",
    "dbfs": "databricks-sdk",
}
MODULE_OF_PACKAGE = {
    "lm-eval": "lm_eval",
    "google-cloud-storage": "google.cloud.storage",
    "azure-storage-blob": "azure.storage.blob",
    "databricks-sdk": "databricks.sdk",
    "transformer-engine": "transformer_engine",
}
# Layers that LLM Foundry registers only where a package is installed.
PACKAGE_FOR_LAYER = {
    "te": "transformer-engine",
    "te_ln_mlp": "transformer-engine",
    "mb_moe": "megablocks",
    "mb_dmoe": "megablocks",
}
PACKAGE_FOR_LOGGER = {"wandb": "wandb", "mlflow": "mlflow", "tensorboard": "tensorboard"}


def package_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    for name in recipe.get("loggers", {}):
        if name in PACKAGE_FOR_LOGGER:
            yield from missing_package(("loggers", name), PACKAGE_FOR_LOGGER[name])
    for key in (("model", "fc_type"), ("model", "ffn_config", "ffn_type")):
        layer = recipe.get(".".join(key))
        layer = layer.get("name") if isinstance(layer, Mapping) else layer
        if layer in PACKAGE_FOR_LAYER:
            yield from missing_package(key, PACKAGE_FOR_LAYER[layer])
    if recipe.get("harness_tasks"):
        yield from missing_package(("harness_tasks",), "lm-eval")
    if recipe.get("model.peft_config"):
        yield from missing_package(("model", "peft_config"), "peft")
    prices = recipe.get("cost.prices_file")
    if prices and not Path(prices).is_file():
        yield ("cost", "prices_file"), f"there is no file {prices}"
    for name in recipe.get("code_paths", []):
        if not os.path.exists(name):
            yield ("code_paths",), f"there is no file {name}"


def scheme_problems(key: KeyPath, uri: str) -> Iterator[tuple[KeyPath, str]]:
    package = PACKAGE_FOR_SCHEME.get(uri.partition(":/")[0])
    if package:
        yield from missing_package(key, package)


def missing_package(key: KeyPath, package: str) -> Iterator[tuple[KeyPath, str]]:
    if not importable(MODULE_OF_PACKAGE.get(package, package)):
        yield key, f"needs the package {package}: {install_command(package)}"


def importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False

"""What is wrong with an in-context-learning task by itself: its settings, and the rows of its file. No torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from eval import metrics
from eval.tasks import prompts
from eval.tasks.rows import FIELDS, Row, TaskError, check_rows, read_rows
from recipes.spelling import did_you_mean
from recipes.training.startup import light_imports

# Arguments of `generate` that give more than one text, or that want a model, a tokenizer or objects beside them.
NOT_FOR_TASKS = {"num_return_sequences", "return_dict_in_generate", "max_length", "min_length", "stop_strings"}
NOT_FOR_TASKS |= {"constraints", "force_words_ids", "num_beam_groups", "dola_layers", "watermarking_config"}
NOT_FOR_TASKS |= {"prompt_lookup_num_tokens", "assistant_early_exit", "token_healing"}
KEYS = {field.name for field in fields(prompts.Format)} | {
    "label",
    "dataset_uri",
    "icl_task_type",
    "num_fewshot",
    "metric_names",
    "max_seq_len",
    "batch_size",
    "has_categories",
    "question_prelimiter",
    "random_baseline",
    "generation_kwargs",
    "early_stopping_criteria",
    "do_normalization",
    "hf_loading_vars",
    "hf_parsing_map",
}
Fetch = Callable[[str], Path]  # where the file of a dataset_uri is


def check_task(settings: Mapping[str, Any], fetch: Fetch = Path) -> tuple[str | Path, tuple[list[Row], str, list[int]]]:
    """Whose file it is, and its rows, their digest and lines. Raises TaskError: what is wrong by itself."""
    kind = settings.get("icl_task_type")
    label = str(settings.get("label", "?"))
    if not isinstance(kind, str) or kind not in FIELDS:
        text = f"icl_task_type: got {kind!r}, expected one of {', '.join(sorted(FIELDS))}"
        raise TaskError(f"task {label}: {text}; types of one's own (code_paths) cannot be evaluated here")
    for key in settings:
        if key not in KEYS:
            mend = did_you_mean(key, KEYS) or f"; known: {', '.join(sorted(KEYS))}"
            raise TaskError(f"task {label}: {key}: unknown key{mend}")
    for key in ("label", "dataset_uri", "num_fewshot"):
        if settings.get(key) is None:
            raise TaskError(f"task {label}: {key} is missing")
    names = tuple(settings.get("metric_names") or metrics.OF_KIND[kind][:1])
    for name in names:
        if name not in metrics.OF_KIND[kind]:
            allowed = ", ".join(metrics.OF_KIND[kind])
            raise TaskError(f"task {label}: metric_names: got {name}, expected some of {allowed} for {kind}")
    if not _are_shots(settings["num_fewshot"]):
        expected = "a list of different whole numbers of at least 0, such as [0, 5]"
        raise TaskError(f"task {label}: num_fewshot: got {settings['num_fewshot']!r}, expected {expected}")
    for key in ("max_seq_len", "batch_size"):
        value = settings.get(key)
        if value is not None and (type(value) is not int or value < 1):
            raise TaskError(f"task {label}: {key}: got {value!r}, expected a whole number of at least 1")
    chance = settings.get("random_baseline")
    if chance is not None and not (isinstance(chance, (int, float)) and 0 <= chance <= 1):
        raise TaskError(f"task {label}: random_baseline: got {chance!r}, expected a share from 0 to 1")
    if settings.get("prelimiter") and settings.get("question_prelimiter"):
        text = "prelimiter and question_prelimiter are two names of one setting: leave one of them out"
        raise TaskError(f"task {label}: {text}")
    _check_stops(label, settings.get("early_stopping_criteria") or [])
    path, (rows, file_digest, lines) = _rows(settings, fetch)
    form = prompts.format_of(settings)
    renamed = {}
    if form.context_key and kind != "schema":
        renamed["query" if kind == "multiple_choice" else "context"] = form.context_key
    if form.choices_key:
        renamed["choices" if kind == "multiple_choice" else "context_options"] = form.choices_key
    check_rows(rows, kind, str(path), renamed, lines, comparison(settings))
    _check_generation(label, settings.get("generation_kwargs"))
    return path, (rows, file_digest, lines)


def comparison(settings: Mapping[str, Any]) -> Callable[[str], str]:
    """What of a generated text is compared with an answer."""
    return metrics.normalised if settings.get("do_normalization", True) else str.strip


def _check_stops(label: str, stops: Any) -> None:
    """Raises TaskError where `early_stopping_criteria`, which LLM Foundry joins by |, are no regular expression."""
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        expected = "a list of texts, parts of a regular expression"
        raise TaskError(f"task {label}: early_stopping_criteria: got {stops!r}, expected {expected}")
    try:
        re.compile("|".join(stops))
    except re.error as error:
        text = f"got {list(stops)}, expected parts of a regular expression, with \\ before ? and the like: {error}"
        raise TaskError(f"task {label}: early_stopping_criteria: {text}") from None


def _are_shots(value: Any) -> bool:
    whole = isinstance(value, list) and all(type(shots) is int and shots >= 0 for shots in value)
    return whole and 0 < len(value) == len(set(value))


def _check_generation(label: str, asked: Any) -> None:
    """Raises TaskError for `generation_kwargs` that transformers' `generate` does not take, or not for tasks."""
    if not asked:
        return
    with light_imports():  # preflight asks before all else, and would import what a run spares itself
        from transformers import GenerationConfig

    name = f"task {label}: generation_kwargs"
    if not isinstance(asked, Mapping):
        raise TaskError(f"{name}: got {asked!r}, expected arguments of transformers' generate, such as do_sample: true")
    known = set(GenerationConfig().to_dict()) - NOT_FOR_TASKS
    for key in asked:
        if key not in known:
            mend = did_you_mean(key, known)
            raise TaskError(f"{name}: {key}: no argument of transformers' generate that can be set for a task{mend}")
    most = asked.get("max_new_tokens", 1)
    if type(most) is not int or most < 1:
        raise TaskError(f"{name}: max_new_tokens: got {most!r}, expected a whole number of at least 1")
    heat, most_likely = asked.get("temperature"), asked.get("top_k")
    if asked.get("do_sample") and heat is not None and not (isinstance(heat, (int, float)) and heat > 0):
        raise TaskError(f"{name}: temperature: got {heat!r}, expected more than 0; without sampling, do_sample: false")
    if asked.get("do_sample") and most_likely is not None and not (type(most_likely) is int and most_likely >= 0):
        raise TaskError(f"{name}: top_k: got {most_likely!r}, expected a whole number of at least 0 (0: of all)")
    try:
        json.dumps(dict(asked))
        GenerationConfig(**asked).validate()
    except (TypeError, ValueError) as error:
        raise TaskError(f"{name}: {str(error).splitlines()[0]}") from None


def _rows(settings: Mapping[str, Any], fetch: Fetch) -> tuple[str | Path, tuple[list[Row], str, list[int]]]:
    uri = str(settings["dataset_uri"])
    if not uri.startswith("hf://"):
        path = fetch(uri)
        return path, read_rows(path)
    from datasets import load_dataset

    name, columns = uri.removeprefix("hf://"), settings.get("hf_parsing_map") or {}
    try:
        loaded = load_dataset(name, **(settings.get("hf_loading_vars") or {}))
    except Exception as error:
        flag = "--repo-type dataset"
        raise TaskError(
            f"task {settings['label']}: the data set {name} cannot be loaded ({type(error).__name__}: {error}); where "
            f"the Hugging Face hub can be reached, run `hf download {flag} {name}` and copy the cache here, or give a "
            "JSONL file"
        ) from None
    rows = [dict(row) for row in loaded]
    if columns:
        rows = [{key: " ".join(str(row[c]) for c in parts) for key, parts in columns.items()} for row in rows]
    text = json.dumps(rows, sort_keys=True, default=str)
    return uri, (rows, hashlib.sha256(text.encode()).hexdigest(), list(range(1, len(rows) + 1)))

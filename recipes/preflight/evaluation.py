"""What an evaluation recipe asks for and cannot be done, and the tasks of any recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recipes.config.file_names import is_remote
from recipes.config.keys import KeyPath, Problem
from recipes.config.load import Recipe
from recipes.cost.parameters import MPT
from recipes.preflight.data import data_problems, loaders
from recipes.preflight.machine import can_be_written, has_gpu, kernel_refusals
from recipes.preflight.packages import package_problems, scheme_problems
from recipes.preflight.weights import tokenizer_problems, weight_problems


def evaluation_problems(recipe: Recipe) -> list[Problem]:
    """What a well-formed evaluation recipe asks for and cannot be done, on whichever machine."""
    found = [*shot_problems(recipe), *gauntlet_problems(recipe)]
    if not any(recipe.get(key) for key in ("eval_loader", "icl_tasks", "samples")):
        found.append((("icl_tasks",), "there is nothing to evaluate: add tasks, an eval_loader or samples"))
    return [Problem(recipe.place(key), key, text) for key, text in found]


def preflight_evaluation(recipe: Recipe) -> list[Problem]:
    """Everything that an evaluation of this recipe would stop at on this machine."""
    found: list[tuple[KeyPath, str]] = []
    own_code = bool(recipe.get("code_paths"))
    for index, model in enumerate(recipe["models"]):
        found += [(("models", index, *key), text) for key, text in tokenizer_problems(model["tokenizer"], own_code)]
        found += [(("models", index, *key), text) for key, text in weight_problems(model)]
        found += [(("models", index, *key), text) for key, text in _kernel_problems(model["model"], recipe)]
    for key, loader in loaders(recipe):
        found += data_problems(key, loader, recipe)
    found += task_file_problems(recipe)
    found += package_problems(recipe)
    shards = recipe.get("contamination.shards")
    if shards and not (Path(shards) / "index.json").is_file():
        text = f"{shards} holds no shards: it has no index.json; name a folder that data_prep.pretrain made"
        found.append((("contamination", "shards"), text))
    if not has_gpu() and recipe.get("precision") in ("amp_fp16", "amp_fp8"):
        found.append((("precision",), f"no GPU here, and {recipe.get('precision')} needs one: use fp32 or amp_bf16"))
    results = recipe.get("results")
    if results and not can_be_written(Path(results)):
        found.append((("results",), f"results cannot be written to {results}"))
    return [Problem(recipe.place(key), key, text) for key, text in found]


def _kernel_problems(model: Mapping[str, Any], recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    if model.get("name") != MPT:
        return
    for text in kernel_refusals(model, recipe.get("precision", "amp_bf16"), is_training=False):
        yield ("model", "attn_config", "attn_impl"), text


def shot_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    tasks = recipe.get("icl_tasks", [])
    seen: dict[str, int] = {}
    for index, task in enumerate(tasks if isinstance(tasks, list) else []):
        place = ("icl_tasks", index, "num_fewshot")
        if not task["num_fewshot"] or min(task["num_fewshot"]) < 0:
            yield place, f"got {task['num_fewshot']}, expected one or several numbers of examples, each 0 or more"
        for label in (f"{task['label']}/{number}-shot" for number in task["num_fewshot"]):
            if label in seen:
                text = f"{label} is asked for here and in icl_tasks.{seen[label]}: scores are known by these names"
                yield place, f"{text}, so ask once, or give another label"
            seen.setdefault(label, index)


def task_file_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    tasks = recipe.get("icl_tasks", [])
    for index, task in enumerate(tasks if isinstance(tasks, list) else []):
        uri = str(task.get("dataset_uri"))
        if is_remote(uri):
            yield from scheme_problems(("icl_tasks", index, "dataset_uri"), uri)
        elif not Path(uri).is_file():
            yield ("icl_tasks", index, "dataset_uri"), f"no task: there is no file {uri}"
    for key in ("icl_tasks", "eval_gauntlet"):
        path = recipe.get(key)
        if isinstance(path, str) and not Path(path).is_file():
            yield (key,), f"there is no file {path}"


def gauntlet_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """What LLM Foundry's averages would stop at after all tasks, or leave out and call 0."""
    section, tasks = recipe.get("eval_gauntlet"), recipe.get("icl_tasks") or []
    if section is None or isinstance(section, str) or isinstance(tasks, str):
        return  # a file that is not there is said elsewhere
    key: KeyPath = ("eval_gauntlet",)
    if not tasks:
        yield key, "averages icl_tasks, and there are none"
        return
    known = {"categories", "weighting", "subtract_random_baseline", "rescale_accuracy", "averages"}
    for name in section.keys() - known:
        yield (*key, name), f"unknown key. Allowed: {', '.join(sorted(known))}"
    weighting, weightings = section.get("weighting", "EQUAL"), ("EQUAL", "SAMPLE_SZ", "LOG_SAMPLE_SZ")
    if weighting not in weightings:
        yield (*key, "weighting"), f"got {weighting!r}, expected one of {', '.join(weightings)}"
    subtracts = section.get("subtract_random_baseline", True)
    if section.get("rescale_accuracy", True) and not subtracts:
        yield (*key, "rescale_accuracy"), "needs subtract_random_baseline: set it to false, or that to true"
    scored = {f"{t['label']}/{n}-shot" for t in tasks if _has_accuracy(t) for n in t["num_fewshot"]}
    names = []
    for index, category in _sections(section.get("categories")):
        where = (*key, "categories", index)
        names.append(str(category.get("name")))
        if not isinstance(category.get("name"), str):
            yield (*where, "name"), f"got {category.get('name')!r}, expected text"
        benchmarks = _sections(category.get("benchmarks"))
        if not benchmarks:
            yield (*where, "benchmarks"), f"got {category.get('benchmarks')!r}, expected a list of sections"
        for number, benchmark in benchmarks:
            wanted = f"{benchmark.get('name')}/{benchmark.get('num_fewshot')}-shot"
            if wanted not in scored:
                text = f"icl_tasks scores no accuracy of {wanted}, only of {', '.join(sorted(scored)) or 'nothing'}"
                yield (*where, "benchmarks", number), text
            chance = benchmark.get("random_baseline")
            if subtracts and (isinstance(chance, bool) or not isinstance(chance, (int, float)) or not 0 <= chance < 1):
                text = f"got {chance!r}, expected a share from 0 up to 1"
                yield (*where, "benchmarks", number, "random_baseline"), text
    if not names:
        text = f"got {section.get('categories')!r}, expected a list of sections with name and benchmarks"
        yield (*key, "categories"), text
    averages = section.get("averages")
    if averages is not None and not (isinstance(averages, Mapping) and averages):
        yield (*key, "averages"), f"got {averages!r}, expected the name of each average and its list of categories"
    for name, members in averages.items() if isinstance(averages, Mapping) else ():
        if name in names:
            yield (*key, "averages", name), "is the name of a category: give the average another"
        if not (isinstance(members, list) and members and all(member in names for member in members)):
            text = f"got {members!r}, expected a list of categories, of {', '.join(names)}"
            yield (*key, "averages", name), text


def _sections(value: Any) -> list[tuple[int, Mapping[str, Any]]]:
    """The sections of a list, with their numbers; none where one of them, or the list, is something else."""
    whole = isinstance(value, list) and all(isinstance(inner, Mapping) for inner in value)
    return list(enumerate(value)) if whole else []


def _has_accuracy(task: Mapping[str, Any]) -> bool:
    """Whether there is a score that LLM Foundry's averages take."""
    return any("Accuracy" in name for name in task.get("metric_names") or ["Accuracy"])

"""Evaluate models: validation loss, in-context-learning tasks, samples of their text.

    composer eval/evaluate.py yamls/eval/quickstart.yaml
    composer -n 8 eval/evaluate.py yamls/eval/quickstart.yaml models.0.run=runs/mpt-1b
    python eval/evaluate.py yamls/eval/quickstart.yaml --show-prompts
    python eval/evaluate.py yamls/eval/quickstart.yaml dry_run=true

Recipes have LLM Foundry's evaluation keys; a model may also be named by its run folder or its Hugging Face folder (see
eval/models.py). An evaluation that was done before prints its results again; a killed one goes on. `--show-prompts`
prints the exact prompt of each task's first example and evaluates nothing; `dry_run=true` prints the recipe as it is
meant and what this machine lacks for it.
"""

from __future__ import annotations

import copy
import functools
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: look for modules in the folder above, not in this one
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from eval import results
from eval.baseline import unigram_entropy
from eval.cache import SCORING, AnswerCache
from eval.digests import digest_of, files_of, is_elsewhere
from eval.models import long_loaders, longest, runs_judged, spell_out_models
from eval.questions import ScoringError
from eval.samples import continued, refuse_samples
from eval.tasks.rows import TaskError
from recipes.config.check import check
from recipes.config.evaluation_rules import evaluation_notes
from recipes.config.keys import Place, Problem, RecipeError
from recipes.config.load import Recipe, load
from recipes.config.named_files import with_named_files
from recipes.config.sections import contamination_shards, loaders
from recipes.preflight.evaluation import precision_of, preflight_evaluation
from recipes.preflight.machine import can_be_written
from recipes.ranks import is_first_rank
from recipes.reports.runs import perplexity
from recipes.screen import exit_status, print_problems, usage
from recipes.training.batches import shard_folders
from recipes.training.startup import light_imports

SHOW_PROMPTS = "--show-prompts"


def main(arguments: list[str]) -> int:
    only_prompts = SHOW_PROMPTS in arguments
    arguments = [argument for argument in arguments if argument != SHOW_PROMPTS]
    if not arguments or arguments[0] in ("-h", "--help"):
        return usage(__doc__, arguments)
    try:
        written = load(arguments[0], arguments[1:])
        recipe = spell_out_models(with_named_files(written))
        problems = check(recipe, "eval") or long_loaders(recipe)
        if problems:
            raise RecipeError(problems)
    except RecipeError as error:
        return print_problems("this evaluation cannot be run", error.problems)
    for note in evaluation_notes(recipe.values) if is_first_rank() else ():
        print(f"note: {note}")
    missing = preflight_evaluation(recipe)
    if recipe.get("dry_run"):
        if is_first_rank():
            print(recipe.to_yaml())
            print("The recipe is sound." + (" On this machine a run would stop at:" if missing else ""))
            for problem in missing:
                print(f"  {problem}")
        return 0
    if missing:
        return print_problems("this machine lacks what the evaluation needs", missing)

    jobs = [_job(part, path) for path, part in results.by_path(recipe, runs_judged(written)).items()]
    for job in jobs:
        if not can_be_written(job.path):
            problem = Problem(recipe.place(("results",)), ("results",), f"results cannot be written to {job.path}")
            return print_problems("this evaluation cannot be run", [problem])
    for job in jobs if is_first_rank() and not only_prompts else []:
        if job.found is not None:
            print("evaluated before: same checkpoint, same tasks")
            results.show(job.path, job.found)
    if not only_prompts and all(job.found is not None for job in jobs):
        return 0

    with light_imports():
        from recipes import parts
        from recipes.training.processes import quiet

    quiet()
    try:
        parts.register_components()
        parts.import_code(recipe)
        if only_prompts:
            return _show_prompts(recipe, jobs[0].path.parent / "tasks")
        _settings(recipe, recipe["models"][0])  # joins the processes' group, in which tokenizers are built
        refuse_samples(recipe, functools.partial(_tokenizer, recipe))
        for job in jobs:
            if job.found is not None:
                continue
            entries, examples = evaluate(job.recipe, job.models, job.path.parent)
            if is_first_rank():
                content = {"digest": job.digest, "recipe": str(recipe.path), "models": entries}
                results.write(job.path, content, examples)
                results.show(job.path, content)
    except RecipeError as error:
        return print_problems("this evaluation cannot be run", error.problems)
    except (TaskError, ScoringError) as error:
        return print_problems("this evaluation cannot be done", [Problem(Place(str(recipe.path)), (), str(error))])
    return 0


@dataclass(frozen=True)
class _Job:
    """What of a recipe has its results in one file; found: those results, where this was evaluated before."""

    recipe: Recipe
    path: Path
    models: list[str]  # their digests
    digest: str
    found: dict[str, Any] | None


def _job(recipe: Recipe, path: Path) -> _Job:
    run_name = recipe.get("run_name") or recipe.path.stem
    code = recipe.get("code_paths") or []
    models = [digest_of(entry, precision_of(recipe), run_name, code) for entry in recipe["models"]]
    digest = results.digest(recipe, [*models, str(SCORING)], files_of(recipe))
    # loggers get the numbers of each call, for which kept answers are counted again
    found = None if is_elsewhere(recipe) or recipe.get("loggers") else results.finished(path, digest)
    return _Job(recipe, path, models, digest, found)


def evaluate(recipe: Recipe, digests: list[str], folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every model of a checked recipe through its loaders and tasks: entries for results.json, and records of examples.

    digests: the models', in their order. folder: that of the results, for answers and task files.
    Raises RecipeError, TaskError, ScoringError.
    """
    models, examples = [], []
    for entry, digest in zip(recipe["models"], digests, strict=True):
        result, records = _evaluate(recipe, entry, digest, folder)
        models.append(result)
        examples += [{"model": entry["model_name"], **record} for record in records]
    return models, examples


def _evaluate(
    recipe: Recipe, entry: dict[str, Any], digest: str, folder: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from composer.utils import dist
    from llmfoundry.data.dataloader import build_dataloader

    from eval.contamination import TOKENS, OtherTokenizer, check_shards, contaminated
    from eval.loading import LoadedModel
    from eval.progress import bar
    from eval.suite import gauntlet_scores, logged, run_tasks, subsets, tasks_of
    from eval.validation import validation_loss
    from recipes import parts
    from recipes.training.loaders_lock import holding_loaders_lock

    settings = _settings(recipe, entry)
    start = time.monotonic()
    tokenizer = _tokenizer(recipe, entry)
    loaded = functools.cache(lambda: LoadedModel(recipe, settings, entry, tokenizer))
    batch, length = int(settings["device_eval_batch_size"]), longest(entry, settings["max_seq_len"])
    result: dict[str, Any] = {"name": entry["model_name"], "checkpoint": _checkpoint(entry), "digest": digest}
    tasks = []
    if settings["icl_tasks"]:
        prompts = min(length, settings.get("icl_seq_len") or length)
        subset = subsets(settings, trains=False)
        entries, scratch = settings["icl_tasks"], folder / "tasks"
        tasks = tasks_of(entries, tokenizer, prompts, batch, scratch, reads=length, **subset)
    shards, tokens = contamination_shards(recipe.values), recipe.get("contamination.tokens", TOKENS)
    if shards:
        try:
            for path in shards:
                check_shards(Path(path), tokenizer)
        except OtherTokenizer as error:  # one model's; the others and the scores are not lost for it
            result["contamination_left_out"], shards = str(error), []
    numbers: dict[str, float] = {}
    for _, loader in loaders(settings, ["eval_loader"]):
        label = loader.pop("label", "")
        with parts.reporting(recipe, "eval_loader"), holding_loaders_lock():
            built = build_dataloader(parts.complete_loader(loader, settings), tokenizer, batch)
        loss = validation_loss(loaded().backbone, built.dataloader, batch, settings["eval_subset_num_batches"])
        result.setdefault("losses", {})[label or "eval"] = loss
        numbers[f"metrics/eval/{label + '/' if label else ''}LanguageCrossEntropy"] = loss
    if "losses" in result:
        result["loss"] = math.fsum(result["losses"].values()) / len(result["losses"])  # as a run's summary has it
        result["perplexity"] = min(perplexity(result["loss"]), sys.float_info.max)  # JSON has no infinity
    cache = functools.partial(AnswerCache, folder, digest, rank=dist.get_global_rank())
    judged = run_tasks(tasks, lambda: loaded().backbone, tokenizer, length, batch, cache, bar)
    result["tasks"] = [j.result for j in judged]
    numbers |= logged(judged)
    if settings["eval_gauntlet"] is not None and judged:
        with parts.reporting(recipe, "eval_gauntlet"):
            result["gauntlet"] = gauntlet_scores(settings["eval_gauntlet"], judged)
        numbers |= {f"icl/metrics/eval_gauntlet/{name}": value for name, value in result["gauntlet"].items()}
    if shards:
        result["contamination"] = contaminated(tasks, tokenizer, shards, tokens)
    result["unigram_entropy"] = _unigram_entropy(recipe)
    if settings.get("samples"):
        result["samples"] = continued(loaded().backbone, tokenizer, settings["samples"])
    result["seconds"] = round(time.monotonic() - start, 3)
    if settings["loggers"] or loaded.cache_info().currsize:
        loaded().log(numbers)
        loaded().close()
    return result, [record for j in judged for record in j.examples()]


def _show_prompts(recipe: Recipe, scratch: Path) -> int:
    from eval.suite import tasks_of

    for entry in recipe["models"]:
        settings = _settings(recipe, entry)
        length = longest(entry, settings["max_seq_len"])
        prompts = min(length, settings.get("icl_seq_len") or length)
        entries = settings["icl_tasks"] or []
        tokenizer = _tokenizer(recipe, entry)
        tasks = tasks_of(entries, tokenizer, prompts, 1, scratch, None, length)
        for task in tasks if is_first_rank() else []:
            example = task.examples[0]
            print(
                f"--- {entry['model_name']}: {task.label}, example 1 of {len(task.examples)}, digest {task.digest[:12]}"
            )
            print(f"{example.shown}⏎")
            for line in example.scored(tokenizer):
                print(line)
    return 0


def _settings(recipe: Recipe, entry: Mapping[str, Any]) -> dict[str, Any]:
    from recipes import parts
    from recipes.training.processes import prepare_process

    parts.register_components()
    settings: dict[str, Any] = {**parts.EVAL_DEFAULTS, **copy.deepcopy(dict(recipe.values)), "model": entry["model"]}
    settings["precision"] = precision_of(recipe)
    prepare_process(settings)
    return settings


def _tokenizer(recipe: Recipe, entry: Mapping[str, Any]) -> Any:
    from llmfoundry.utils import builders

    from recipes.parts import reporting

    with reporting(recipe, "models"):
        return builders.build_tokenizer(entry["tokenizer"]["name"], entry["tokenizer"].get("kwargs") or {})


def _checkpoint(entry: Mapping[str, Any]) -> str | None:
    return entry.get("load_path") or entry["model"].get("pretrained_model_name_or_path")


def _unigram_entropy(recipe: Recipe) -> float | None:
    loader = recipe.get("eval_loader")
    if not isinstance(loader, dict) or loader.get("name") != "text":
        return None
    folders = shard_folders(loader["dataset"])
    if len(folders) != 1 or not (folders[0] / "index.json").is_file():
        return None
    return unigram_entropy(folders[0])


if __name__ == "__main__":
    sys.exit(exit_status(main, "goes on behind the answers that are kept"))

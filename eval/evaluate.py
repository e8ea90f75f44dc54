"""Evaluate models: validation loss, in-context-learning tasks, samples of their text.

    composer eval/evaluate.py yamls/eval/quickstart.yaml
    composer -n 8 eval/evaluate.py yamls/eval/quickstart.yaml models.0.run=runs/mpt-1b

Recipes have LLM Foundry's evaluation keys; a model may also be named by its run folder (see eval/models.py). An
evaluation that was done before, of the same checkpoint on the same tasks, prints its results again.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

if str(Path(__file__).resolve().parent.parent) not in sys.path:  # run as a script, the folder above is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval import results
from eval.baseline import unigram_entropy
from eval.models import spell_out_models
from recipes.batches import shard_folders
from recipes.check import check
from recipes.config import Recipe, load
from recipes.keys import RecipeError
from recipes.preflight import preflight_evaluation
from recipes.screen import is_first_rank, print_problems, usage


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        return usage(__doc__, arguments)
    try:
        written = load(arguments[0], arguments[1:])
        recipe = spell_out_models(written)
        problems = check(recipe, "eval")
        if problems:
            raise RecipeError(problems)
    except RecipeError as error:
        return print_problems("this evaluation cannot be run", error.problems)
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

    run = (written.get("models") or [{}])[0].get("run")
    path = results.results_path(recipe, run)
    found = results.finished(path, results.digest(recipe))
    if found is not None:
        if is_first_rank():
            print("evaluated before: same checkpoint, same tasks")
            results.show(path, found)
        return 0

    from recipes.processes import quiet

    quiet()
    try:
        models = [_evaluate(recipe, model, path.parent / "tasks") for model in recipe["models"]]
    except RecipeError as error:
        return print_problems("this evaluation cannot be run", error.problems)
    if is_first_rank():
        results.write(path, recipe, models)
        results.show(path, results.finished(path, results.digest(recipe)) or {"models": models})
    return 0


def _evaluate(recipe: Recipe, entry: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Build one model, load its weights, and put it through every loader and task of the recipe."""
    from composer import Trainer
    from composer.utils import dist
    from llmfoundry.utils import builders

    from recipes import build
    from recipes.build import reporting
    from recipes.processes import parallelism, prepare_process

    build.register_components()
    settings: dict[str, Any] = {**build.EVAL_DEFAULTS, **copy.deepcopy(dict(recipe.values)), "model": entry["model"]}
    prepare_process(settings)
    with reporting(recipe, "models"):
        tokenizer = builders.build_tokenizer(entry["tokenizer"]["name"], entry["tokenizer"].get("kwargs") or {})
    evaluators, gauntlet = build.build_evaluators(recipe, settings, tokenizer, str(scratch))
    fsdp = settings["fsdp_config"] if dist.get_world_size() > 1 else None
    with reporting(recipe, "models"):
        model = build.build_model(copy.deepcopy(entry["model"]), tokenizer, fsdp, None)
    if settings["eval_loader"] is not None:
        evaluators = builders.add_metrics_to_eval_loaders(evaluators, build.loss_metrics(model))
    with reporting(recipe, "models"):
        trainer = Trainer(
            run_name=settings["run_name"] or recipe.path.stem,
            seed=settings["seed"],
            model=model,
            callbacks=gauntlet,
            loggers=build.build_loggers(recipe, settings),
            precision=settings["precision"],
            parallelism_config=parallelism(fsdp, None, model),
            load_path=entry.get("load_path"),
            load_weights_only=True,
            progress_bar=True,
            dist_timeout=settings["dist_timeout"],
        )
    build.say_the_recipe_once(trainer)
    trainer.eval(eval_dataloader=evaluators, subset_num_batches=settings["eval_subset_num_batches"])
    tasks = recipe.get("icl_tasks", [])
    sizes = {e.label: int(n) for e in evaluators if (n := getattr(e.dataloader, "num_samples", None))}
    result = results.collect(entry, trainer.state.eval_metrics, sizes, tasks if isinstance(tasks, list) else [])
    result["unigram_entropy"] = _unigram_entropy(recipe)
    result["samples"] = _samples(model, tokenizer, settings.get("samples"))
    trainer.close()
    return result


def _unigram_entropy(recipe: Recipe) -> float | None:
    loader = recipe.get("eval_loader")
    if not isinstance(loader, dict) or loader.get("name") != "text":
        return None
    folders = shard_folders(loader["dataset"])
    if len(folders) != 1 or not (folders[0] / "index.json").is_file():
        return None
    return unigram_entropy(folders[0])


def _samples(model: Any, tokenizer: Any, wanted: dict[str, Any] | None) -> list[dict[str, str]]:
    """Continue each prompt of `samples:`; sampling is seeded, so that the same checkpoint says the same."""
    if not wanted:
        return []
    import torch

    made = []
    for prompt in wanted["prompts"]:
        torch.manual_seed(wanted.get("seed", 17))
        ids = tokenizer(prompt, return_tensors="pt")
        ids = {k: v.to(next(model.parameters()).device) for k, v in ids.items() if k != "token_type_ids"}
        with torch.no_grad():
            text = model.generate(
                **ids,
                max_new_tokens=wanted.get("max_new_tokens", 60),
                do_sample=wanted.get("temperature", 0.8) > 0,
                temperature=wanted.get("temperature", 0.8) or None,
                top_p=wanted.get("top_p", 0.9),
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
                synced_gpus=False,
            )
        made.append({"prompt": prompt, "text": tokenizer.decode(text[0, ids["input_ids"].shape[1] :])})
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

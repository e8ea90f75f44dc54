"""What one key of an evaluation demands of another, in a training recipe or one of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from recipes.config.keys import KeyPath
from recipes.config.sections import Finding, loaders, section
from recipes.cost.architecture import OURS
from recipes.cost.run_length import read_duration
from recipes.run_files import TASKS
from recipes.spelling import did_you_mean

ANSWERS_ARE = "every answer to a task is in results.examples.jsonl, which eval/evaluate.py writes beside its results"

# What LLM Foundry measures of a language model's texts, while it trains and in validation.
METRICS = ("LanguageCrossEntropy", "LanguagePerplexity", "TokenAccuracy")

# LLM Foundry's models that are asked over the network.
OF_AN_API = ("openai_causal_lm", "openai_chat", "fmapi_causal_lm", "fmapi_chat")


def _apis(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    models: dict[KeyPath, Any] = {("model",): section(recipe, "model")}
    models |= {("models", index, "model"): entry.get("model") for index, entry in _sections(recipe.get("models"))}
    for key, model in models.items():
        if section({"model": model}, "model").get("name") in OF_AN_API:
            text = f"{model['name']} is asked over the network, and what runs here computes its model itself"
            yield (*key, "name"), f"{text}: name another, such as hf_causal_lm, or evaluate it with LLM Foundry"


def _of_training(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    model = section(recipe, "model").get("name")
    has_evaluation = any(recipe.get(key) for key in ("eval_loader", "icl_tasks", "harness_tasks"))
    if recipe.get("eval_first") and not has_evaluation:
        yield ("eval_first",), "there is nothing to evaluate: add eval_loader or icl_tasks"
    if model == "hf_t5":
        if recipe.get("icl_tasks"):
            yield ("icl_tasks",), "in-context learning evaluates decoder-only models, not hf_t5"
        for key, loader in loaders(recipe):
            if loader.get("name") == "text":
                yield (*key, "name"), "hf_t5 is trained on prompts and responses: use the finetuning loader"
    if section(recipe, "model").get("load_in_8bit"):
        yield ("model", "load_in_8bit"), "8-bit weights can be evaluated but not trained"


def _tasks_in_the_loop(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    has_tasks = bool(recipe.get("icl_tasks") or recipe.get("harness_tasks"))
    interval = recipe.get("task_interval")
    if interval is not None and not has_tasks:
        yield ("task_interval",), "there are no icl_tasks and no harness_tasks to evaluate"
    if interval is not None and _is_never(interval) and has_tasks and not recipe.get("eval_first"):
        text = "expected a part of the run, such as 500ba: tasks would never be evaluated"
        yield ("task_interval",), f"got {interval}; {text}"
    harness = section(recipe, "harness_tasks")
    if harness.get("fewshot_as_multiturn") and not harness.get("apply_chat_template"):
        text = "there are turns in a conversation alone: set apply_chat_template: true, or leave it out"
        yield ("harness_tasks", "fewshot_as_multiturn"), text
    tasks = recipe.get("icl_tasks")
    for index, task in enumerate(tasks if isinstance(tasks, list) else []):
        if task["label"] in (section(recipe, "harness_tasks").get("tasks") or []):
            text = f"{task['label']} is the name of one of harness_tasks too: scores are known by these names"
            yield ("icl_tasks", index, "label"), f"{text}, so give another"


def _stoppers(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    """Callbacks that wait for what never comes."""
    callbacks = section(recipe, "callbacks")
    several = isinstance(recipe.get("eval_loader"), list)  # as LLM Foundry names them
    names = [f"eval/{loader.get('label')}" for _, loader in loaders(recipe, ["eval_loader"])]
    labels = set(names) if several else {"eval"} if names else set()
    if section(callbacks, "budget_guard").get("max_usd_per_hundredth_loss") is not None and not labels:
        key = ("callbacks", "budget_guard", "max_usd_per_hundredth_loss")
        yield key, "needs an eval_loader, by whose losses it judges"
    for name in ("early_stopper", "threshold_stopper"):
        wanted = section(callbacks, name).get("dataloader_label")
        if wanted is not None and wanted not in labels | {"train"}:
            known = ", ".join(sorted(labels)) or "there is none"
            text = f"got {wanted}, expected train or a validation loader: {known}"
            why = "; scores of tasks, which are no loaders here, cannot stop a run" if "-shot" in str(wanted) else ""
            yield ("callbacks", name, "dataloader_label"), text + why
        elif wanted is not None:
            for text in _monitored(recipe, wanted, section(callbacks, name).get("monitor")):
                yield ("callbacks", name, "monitor"), text


def _monitored(recipe: Mapping[str, Any], label: str, monitor: Any) -> Iterator[str]:
    """Why a model of this project never computes the metric that a stopper waits for."""
    model = section(recipe, "model")
    if model.get("name") not in OURS or recipe.get("dpo"):
        return
    if label == "train" and not model.get("use_train_metrics", True):
        yield "dataloader_label: train needs model.use_train_metrics: true, else nothing is measured while training"
    elif monitor not in METRICS and not model.get("additional_train_metrics"):
        yield f"got {monitor}, expected one of {', '.join(METRICS)}{did_you_mean(str(monitor), METRICS)}"


def _of_its_own(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    if not any(recipe.get(key) for key in ("eval_loader", "icl_tasks", "samples")):
        yield ("icl_tasks",), "there is nothing to evaluate: add tasks, an eval_loader or samples"
    if recipe.get("callbacks"):
        answers = f"; {ANSWERS_ARE}" if "eval_output_logging" in recipe["callbacks"] else ""
        yield ("callbacks",), f"an evaluation has no callbacks: nothing would call them; leave them out{answers}"
    for key, loader in loaders(recipe, ["eval_loader"]):
        dataset = section(loader, "dataset")
        parts: dict[KeyPath, Any] = {("dataset",): dataset}
        parts |= {("dataset", "streams", name): stream for name, stream in section(dataset, "streams").items()}
        for inner, part in parts.items():
            for name in ("epoch_size", "proportion", "repeat", "choose"):
                if part.get(name) is not None:
                    text = "chooses among samples, and an evaluation takes each once: leave it out"
                    yield (*key, *inner, name), f"{text}, or limit it by eval_subset_num_batches"
    for index, entry in enumerate(recipe["models"]):
        if entry["model"].get("name") in OURS and not entry.get("load_path"):
            text = "is missing, and without a checkpoint the weights of such a model are random: name one, or a run"
            yield ("models", index, "load_path"), text


def _shots(recipe: Mapping[str, Any]) -> Iterator[Finding]:
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


def _gauntlet(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    """What LLM Foundry's averages would stop at after all tasks, or leave out and call 0."""
    gauntlet, tasks = recipe.get("eval_gauntlet"), recipe.get("icl_tasks") or []
    if gauntlet is None or isinstance(tasks, str):
        return  # a file that is not there is said elsewhere
    key: KeyPath = ("eval_gauntlet",)
    if not tasks:
        yield key, "averages icl_tasks, and there are none"
    if not tasks or isinstance(gauntlet, str):
        return
    known = {"categories", "weighting", "subtract_random_baseline", "rescale_accuracy", "averages"}
    for name in gauntlet.keys() - known:
        yield (*key, name), f"unknown key. Allowed: {', '.join(sorted(known))}"
    weighting, weightings = gauntlet.get("weighting", "EQUAL"), ("EQUAL", "SAMPLE_SZ", "LOG_SAMPLE_SZ")
    if weighting not in weightings:
        yield (*key, "weighting"), f"got {weighting!r}, expected one of {', '.join(weightings)}"
    subtracts = gauntlet.get("subtract_random_baseline", True)
    if gauntlet.get("rescale_accuracy", True) and not subtracts:
        yield (*key, "rescale_accuracy"), "needs subtract_random_baseline: set it to false, or that to true"
    scored = _scored(tasks)
    _, missing = scored_part(gauntlet, scored)
    names = []
    for index, category in _sections(gauntlet.get("categories")):
        where = (*key, "categories", index)
        names.append(str(category.get("name")))
        if not isinstance(category.get("name"), str):
            yield (*where, "name"), f"got {category.get('name')!r}, expected text"
        benchmarks = _sections(category.get("benchmarks"))
        if not benchmarks:
            yield (*where, "benchmarks"), f"got {category.get('benchmarks')!r}, expected a list of sections"
        for number, benchmark in benchmarks:
            wanted = _label(benchmark)
            if wanted not in scored and len(missing) == len(gauntlet["categories"]):  # no category is left
                text = f"icl_tasks scores no accuracy of {wanted}, only of {', '.join(sorted(scored)) or 'nothing'}"
                yield (*where, "benchmarks", number), text
            chance = benchmark.get("random_baseline")
            if subtracts and (isinstance(chance, bool) or not isinstance(chance, (int, float)) or not 0 <= chance < 1):
                text = f"got {chance!r}, expected a share from 0 up to 1"
                yield (*where, "benchmarks", number, "random_baseline"), text
    for name in _with_slashes(gauntlet):
        yield key, f"got {name}, expected a name without /, which averages are taken apart at: give it another"
    if not names:
        text = f"got {gauntlet.get('categories')!r}, expected a list of sections with name and benchmarks"
        yield (*key, "categories"), text
    averages = gauntlet.get("averages")
    if averages is not None and not (isinstance(averages, Mapping) and averages):
        yield (*key, "averages"), f"got {averages!r}, expected the name of each average and its list of categories"
    for name, members in averages.items() if isinstance(averages, Mapping) else ():
        if name in names:
            yield (*key, "averages", name), "is the name of a category: give the average another"
        if not (isinstance(members, list) and members and all(member in names for member in members)):
            text = f"got {members!r}, expected a list of categories, of {', '.join(names)}"
            yield (*key, "averages", name), text


def scored_part(gauntlet: Mapping[str, Any], scored: Collection[str]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The gauntlet without categories of which a benchmark is missing, as LLM Foundry leaves them out.

    scored: tasks with an accuracy, such as piqa/0-shot. The second is each of those categories, with what it lacks.
    Averages of which no category is left go with them: LLM Foundry would call them 0.
    """
    categories = [category for _, category in _sections(gauntlet.get("categories"))]
    lacks = {
        str(category.get("name")): [
            label for _, b in _sections(category.get("benchmarks")) if (label := _label(b)) not in scored
        ]
        for category in categories
    }
    missing = {name: labels for name, labels in lacks.items() if labels}
    part = {**gauntlet, "categories": [c for c in categories if str(c.get("name")) not in missing]}
    if isinstance(gauntlet.get("averages"), Mapping):
        part["averages"] = {n: names for n, names in gauntlet["averages"].items() if not missing.keys() >= set(names)}
    return part, missing


def evaluation_notes(recipe: Mapping[str, Any]) -> Iterator[str]:
    """What of its evaluation a checked recipe asks for, and does not get."""
    gauntlet, tasks = recipe.get("eval_gauntlet"), recipe.get("icl_tasks")
    if tasks_are_never_due(recipe):
        yield "tasks are never evaluated: eval_interval is 0, and neither task_interval nor eval_first says otherwise"
    if tasks and "eval_output_logging" in section(recipe, "callbacks"):
        yield f"callbacks.eval_output_logging logs nothing of icl_tasks: their scores are in {TASKS}, {ANSWERS_ARE}"
    if isinstance(gauntlet, Mapping) and isinstance(tasks, list):
        for name, labels in scored_part(gauntlet, _scored(tasks))[1].items():
            lacking = f"icl_tasks scores no accuracy of {', '.join(labels)}"
            yield f"eval_gauntlet: the category {name} is left out, and of every average: {lacking}"


def tasks_are_never_due(recipe: Mapping[str, Any]) -> bool:
    """Whether a training recipe has tasks and, as LLM Foundry lets it, evaluates them nowhere."""
    has_tasks = bool(recipe.get("icl_tasks") or recipe.get("harness_tasks"))
    when = recipe.get("task_interval") or recipe.get("eval_interval")
    return has_tasks and when is not None and _is_never(when) and not recipe.get("eval_first")


def _is_never(interval: Any) -> bool:
    duration = read_duration(interval)
    return duration is not None and duration.amount == 0


def _scored(tasks: Sequence[Mapping[str, Any]]) -> set[str]:
    return {f"{t['label']}/{n}-shot" for t in tasks if _has_accuracy(t) for n in t["num_fewshot"]}


def _label(benchmark: Mapping[str, Any]) -> str:
    return f"{benchmark.get('name')}/{benchmark.get('num_fewshot')}-shot"


def _sections(value: Any) -> list[tuple[int, Mapping[str, Any]]]:
    """The sections of a list, with their numbers; none where one of them, or the list, is something else."""
    whole = isinstance(value, list) and all(isinstance(inner, Mapping) for inner in value)
    return list(enumerate(value)) if whole else []


def _has_accuracy(task: Mapping[str, Any]) -> bool:
    """Whether there is a score that LLM Foundry's averages take."""
    return any("Accuracy" in name for name in task.get("metric_names") or ["Accuracy"])


def _with_slashes(gauntlet: Mapping[str, Any]) -> Iterator[str]:
    """LLM Foundry's averages take names apart at each /, and would not find these, or mix them up."""
    categories = [category for _, category in _sections(gauntlet.get("categories"))]
    names = [category.get("name") for category in categories]
    names += [b.get("name") for c in categories for _, b in _sections(c.get("benchmarks"))]
    names += section(gauntlet, "averages")
    return (str(name) for name in names if "/" in str(name))


EVALUATION_RULES = (_apis, _shots, _gauntlet)
RULES_OF_TRAINING = (_of_training, _tasks_in_the_loop, _stoppers)
RULES_OF_ITS_OWN = (_of_its_own,)

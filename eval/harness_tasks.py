"""Tasks of lm-evaluation-harness, by their names or from local YAML files: read, and judged by themselves."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.harness_chat import PLAIN, Asking, as_conversation
from eval.harness_index import files_of, index_of
from eval.progress import harness_bars_on_terminals_alone
from eval.questions import ScoringError
from eval.tasks.rows import TaskError, read_rows
from recipes.spelling import did_you_mean

FEWSHOT_SEED = 1234  # the harness's own
FORMATS = ("json", "csv", "parquet", "text")  # data sets that are files of one's own
SUGGESTED = 5  # names, where one is unknown


def load_tasks(names: Sequence[str], include: Sequence[Path], num_fewshot: int | None) -> Any:
    """The harness's task dictionary. include: folders with YAML files of one's own.

    Raises TaskError: a name that nobody has, a file that is no task, data that is not on this machine.
    """
    for folder in include:
        if not folder.is_dir():
            raise TaskError(f"--include: there is no folder {folder}")
        _check_yaml(folder)
    manager = index_of(names, include)
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        for key, part in _load_one(manager, name).items():
            loaded[key].update(part)
    for task in loaded["tasks"].values():
        set_to = task.get_config("num_fewshot")
        if num_fewshot is not None and set_to != 0:  # a task that says 0 means it
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif set_to is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    for name, task in loaded["tasks"].items():
        _check_settings(name, task)
        for part in ("build_all_requests", "process_results"):
            setattr(task, part, _in_words(name, getattr(task, part)))
    return loaded


def prompts(loaded: Any, asking: Asking = PLAIN, tokenizer: Any = None) -> list[tuple[str, str, str]]:
    """(task, exact prompt, what is asked for) of the first example of each task. tokenizer: with a chat template."""

    def chat_template(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        return as_conversation(tokenizer, messages, add_generation_prompt)

    how = {**asking.arguments(), **({"chat_template": chat_template} if asking.apply_chat_template else {})}
    shown = []
    for name, task in loaded["tasks"].items():
        check_examples(name, task, limit=1)
        with harness_bars_on_terminals_alone():
            task.build_all_requests(limit=1, rank=0, world_size=1, **how)
        first = task.instances[0].args
        shown.append((name, str(first[0]), str(first[1]) if len(first) > 1 else ""))
    return shown


def hub_data(loaded: Any) -> list[str]:
    """The data sets of the hub that tasks were loaded with."""
    names = {getattr(task, "DATASET_PATH", None) for task in loaded["tasks"].values()}
    return sorted(name for name in names if name and name not in FORMATS and not Path(name).exists())


def _check_yaml(folder: Path) -> None:
    """The harness leaves out files that it cannot read, and then does not know their tasks. Raises TaskError."""
    from lm_eval.tasks._index import TaskIndex
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in TaskIndex._iter_yaml_files(folder):
        try:
            task = load_yaml(path, resolve_func=False).get("task", "")
            if not isinstance(task, (str, list)):
                raise ValueError(f"task: got {task!r}, expected a name")
        except Exception as error:  # of YAML, of the files that it includes
            raise TaskError(f"--include: {path} cannot be read: {in_one_line(error)}") from None


def _check_settings(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise TaskError(f"task {name}: it runs code that the model writes, which is not done here; leave it out")
    if getattr(task, "MULTIMODAL", False):
        raise TaskError(f"task {name}: it shows pictures or sounds, and models here read text only; leave it out")
    shots = task.get_config("num_fewshot")
    if type(shots) is not int or shots < 0:
        raise TaskError(f"task {name}: num_fewshot: got {shots!r}, expected a whole number of at least 0")
    pool, split = getattr(getattr(task, "sampler", None), "df", None), task.get_config("fewshot_split")
    asked = task.get_config("test_split") or task.get_config("validation_split")
    if pool is not None and shots > len(pool) - (split == asked):  # the question itself is left out
        text = f"{shots} examples before each question are not there: its fewshot split {split} has {len(pool)}"
        raise TaskError(f"task {name}: num_fewshot: {text}")
    if (
        task.OUTPUT_TYPE == "multiple_choice"
        and task.get_config("doc_to_choice") is None
        and not task.get_config("use_prompt")
    ):
        raise TaskError(f"task {name}: doc_to_choice is missing, which output_type: multiple_choice needs")
    if not task.aggregation():
        raise TaskError(f"task {name}: metric_list: names no metric, so that nothing would be scored")


def check_examples(name: str, task: Any, limit: int | None) -> None:
    """Raises ScoringError for an example without a right answer, which the harness would score as wrong."""
    if callable(task.get_config("process_results")) or not hasattr(task, "doc_to_choice"):
        return  # judged by code of its own
    for index, doc in task.doc_iterator(rank=0, limit=limit, world_size=1):
        with _named(f"{name}, example {index + 1}"):
            text, target = task.doc_to_text(doc), task.doc_to_target(doc)
            if text is None or target is None:
                raise ScoringError(f"doc_to_{'text' if text is None else 'target'}: got nothing, expected a text")
            if task.OUTPUT_TYPE == "loglikelihood" and not isinstance(target, str):
                raise ScoringError(f"doc_to_target: got {target!r}, expected a text")
            if task.OUTPUT_TYPE == "multiple_choice":
                _check_choice(task.doc_to_choice(doc), text if task.multiple_input else target)


def _check_choice(choices: Any, right: Any) -> None:
    if not isinstance(choices, (list, tuple)) or not choices or not all(isinstance(c, str) for c in choices):
        raise ScoringError(f"doc_to_choice: got {choices!r}, expected a list of texts")
    for gold in right if isinstance(right, list) and right else [right]:
        if not (0 <= gold < len(choices) if isinstance(gold, (int, np.integer)) else gold in choices):
            raise ScoringError(
                f"the right answer: got {gold!r}, expected a choice or its index, 0 to {len(choices) - 1}"
            )


def _in_words(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """What a task's settings and rows make of the harness's code is said with the task's name."""

    @functools.wraps(function)
    def call(*args: Any, **more: Any) -> Any:
        with _named(f"task {name}"):
            return function(*args, **more)

    return call


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ScoringError(f"{where}: {in_one_line(error)}") from error


def in_one_line(error: BaseException) -> str:
    """In one line; what the harness and datasets raise often says nothing without its kind."""
    words = " ".join(str(error).split())[:300]
    known = isinstance(error, (ScoringError, TaskError))
    return words if known and words else f"{type(error).__name__}: {words}" if words else type(error).__name__


def _load_one(manager: Any, name: str) -> Any:
    try:
        return manager.load([name])
    except KeyError as error:
        if name in manager.all_tasks or Path(name).is_file():
            words = " ".join(str(error.args[0]).split())
            words = words if " " in words else f"it names {words!r}, which there is not"
            raise TaskError(f"task {name} cannot be read: {words}") from None
        guess = did_you_mean(name, manager.all_tasks, SUGGESTED) or "."
        text = "got a name that is neither a task, group or tag of lm-evaluation-harness nor a YAML file"
        raise TaskError(
            f"task {name}: {text}{guess} Your own tasks are found with --include FOLDER (harness_tasks.include)"
        ) from None
    except Exception as error:  # whatever reading a data set raises
        raise TaskError(_unreachable(manager, name, error)) from None


def _unreachable(manager: Any, name: str, error: Exception) -> str:
    words = " ".join(f"{error} {error.__cause__ or ''}".split()) or type(error).__name__
    missing = [path for path in sorted(_datasets(manager, name)) if path not in FORMATS]
    if not missing:
        try:  # datasets does not say which line of which file
            for file in files_of(_yaml_of(manager, name) or Path()):
                if file.suffix == ".jsonl":
                    read_rows(file)
        except TaskError as better:
            words = str(better)
        return f"task {name} cannot be loaded: {words}"
    commands = " and ".join(f"`hf download --repo-type dataset {path}`" for path in missing)
    return (
        f"task {name}: its data ({', '.join(missing)}) is not on this machine and was not fetched: {words[:200]}. "
        f"Where the Hugging Face hub can be reached run {commands} and copy the cache (HF_HOME, by default "
        "~/.cache/huggingface) here, or write a task YAML over a local JSONL file and name its folder with --include"
    )


def _datasets(manager: Any, name: str) -> set[str]:
    """The data sets on the hub that a task, or the tasks of a group, read."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry, path = manager.task_index.get(name), _yaml_of(manager, name)
    if path is None:
        return set()
    try:
        config = load_yaml(path, resolve_func=False)
    except Exception:  # only for the wording of another error
        return set()
    found = {str(config["dataset_path"])} if config.get("dataset_path") else set()
    inside = config.get("task")
    for child in inside if isinstance(inside, list) else []:
        child = child.get("task") if isinstance(child, Mapping) else child
        if isinstance(child, str) and child != name:
            found |= _datasets(manager, child)
    for tagged in getattr(entry, "tags", None) or ():
        if tagged != name and tagged in manager.task_index and not found:
            found |= _datasets(manager, tagged)
    return found


def _yaml_of(manager: Any, name: str) -> Path | None:
    return getattr(manager.task_index.get(name), "yaml_path", None) or (Path(name) if Path(name).is_file() else None)

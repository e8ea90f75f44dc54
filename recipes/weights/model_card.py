"""README.md of an exported folder: what the model is, from which recipe and data, how good, at what price. No torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.reports.scores import score_with_interval
from recipes.reports.summary import read_json, recipe_digest
from recipes.run_files import EVALUATION, HARNESS, SUMMARY
from recipes.training.batches import shard_folders
from recipes.training.checkpoints import is_of
from recipes.weights.trained import Trained


@dataclass(frozen=True)
class Adapter:
    """What an exported adapter is loaded onto. `opens`: with transformers, as it is."""

    numbers: int
    base: str
    opens: bool


def model_card(
    trained: Trained, folder: Path, out: Path, kind: str, parameters: int, adapter: Adapter | None = None
) -> str:
    """The text of the card; what is not known is said to be so, never guessed.

    folder: where the export is written, for the chat template. out: where it will be, as the command was told and the
    card opens it; of absolute paths, which are of this machine alone, a card has the last part. kind, parameters: the
    model's class in transformers, and how large it is. adapter: of a folder that
    has no more than one.
    """
    recipe = dataclasses.replace(trained.recipe, values=_without_folders(trained.recipe.values))
    name, digest = _name(out), recipe_digest(trained.recipe)
    chat = "chat_template" in _text(folder / "tokenizer_config.json") or (folder / "chat_template.jinja").is_file()
    lines = [
        "---",
        f"library_name: {'peft' if adapter else 'transformers'}",
        "pipeline_tag: text-generation",
        "---",
        f"# {out.name}",
        "",
        f"{f'An adapter (LoRA) of {adapter.numbers:,} numbers for a model of ' if adapter else ''}"
        f"{parameters:,} parameters, `{kind}` of transformers (no remote code), context "
        f"{recipe['max_seq_len']:,} tokens.",
        "",
        *_base(adapter),
        "```python",
        *(["from peft import PeftModel"] if adapter else []),
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        *_loading(name, adapter),
        *_prompt(chat),
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))",
        "```",
        "",
        "## Data",
        "",
        *_or_not_known(lambda: _data(trained.recipe.values), "the manifest of its data"),
        "",
        "## Evaluation",
        "",
        *_or_not_known(lambda: _evaluation(trained), f"{EVALUATION} or {HARNESS} of the run"),
        "",
        "## Cost",
        "",
        *_or_not_known(lambda: _cost(trained), f"{SUMMARY} of the run"),
        "",
        "## Recipe",
        "",
        f"Checkpoint `{trained.checkpoint.name}`; SHA-256 of what decides the training: `{digest}`.",
        "",
        "```yaml",
        recipe.to_yaml().strip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _name(path: Any) -> str:
    """A path as a card that is read elsewhere has it: the last part where it is an absolute one of this machine."""
    return Path(str(path)).name if Path(str(path)).is_absolute() else str(path)


def _without_folders(value: Any) -> Any:
    """A recipe's value with every absolute path in it by its name."""
    if isinstance(value, Mapping):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    return _name(value) if isinstance(value, str) and value.startswith("/") else value


def _or_not_known(lines: Callable[[], list[str]], file: str) -> list[str]:
    """An export is not lost for a file that somebody damaged."""
    try:
        return lines()
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"Not known: {file} cannot be read."]


def _base(adapter: Adapter | None) -> list[str]:
    if adapter is None or adapter.opens:
        return []
    return [
        "Its base is no folder of transformers yet:",
        "",
        f"    python -m recipes export {_name(adapter.base)} BASE",
        "",
    ]


def _loading(out: str, adapter: Adapter | None) -> list[str]:
    if adapter is None:
        return [f'model = AutoModelForCausalLM.from_pretrained("{out}")']
    base = _name(adapter.base) if adapter.opens else "BASE"
    return [
        f'model = AutoModelForCausalLM.from_pretrained("{base}")',
        f'model = PeftModel.from_pretrained(model, "{out}")',
    ]


def _prompt(chat: bool) -> list[str]:
    if not chat:
        return ['inputs = tokenizer("Once", return_tensors="pt")']
    return [
        'messages = [{"role": "user", "content": "Who are you?"}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ")",
    ]


def _data(recipe: Mapping[str, Any]) -> list[str]:
    loader = recipe.get("train_loader") or {}
    dataset = loader.get("dataset") or {}
    lines = []
    if recipe.get("pretrained"):
        lines.append(f"- started from the weights in `{_name(recipe['pretrained'])}`")
    for folder in shard_folders(dataset):
        manifest = folder / "manifest.json"
        if not manifest.is_file():
            lines.append(f"- `{_name(folder)}`: its manifest is not on the machine that exported")
            continue
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
        about = json.loads(_text(manifest) or "{}")
        lines.append(f"- `{_name(folder)}`: {about.get('tokens', 0):,} tokens; SHA-256 of its manifest.json `{digest}`")
    files = dataset.get("hf_kwargs") or {}
    if dataset.get("hf_name"):
        lines.append(f"- `{dataset['hf_name']}` {files.get('data_files') or files.get('data_dir') or ''}".rstrip())
    if loader.get("name") == "preferences":
        lines.append(_pairs(Path(str(dataset.get("path")))))
    return lines or ["The recipe names no data on the machine that exported."]


def _pairs(file: Path) -> str:
    if not file.is_file():
        return f"- `{_name(file)}`: its pairs are not on the machine that exported"
    content = file.read_bytes()
    count = len(content.rstrip(b"\n").split(b"\n"))  # as they are read
    return f"- `{_name(file)}`: {count:,} pairs of answers; SHA-256 `{hashlib.sha256(content).hexdigest()}`"


def _evaluation(trained: Trained) -> list[str]:
    run = trained.run
    summary = read_json(run / SUMMARY) if run else {}
    lines = []
    if isinstance(summary.get("eval_loss_end"), float) and _is_last(summary, trained.checkpoint):
        lines.append(f"- validation loss {summary['eval_loss_end']:.4f} nats a token at the end of training")
    judged = [model for name in (EVALUATION, HARNESS) if run for model in read_json(run / name).get("models", [])]
    for model in judged:
        if not is_of(model.get("checkpoint"), trained.checkpoint):
            continue  # others were evaluated beside this one
        for task in model.get("tasks", []):
            chance = f", chance {task['chance']:.0%}" if task.get("chance") is not None else ""
            lines.append(f"- {task['label']}: {score_with_interval(task)}{chance}, {task['examples']} examples")
    return lines or ["This model was not evaluated."]


def _is_last(summary: Mapping[str, Any], checkpoint: Path) -> bool:
    """Whether a run ended with this checkpoint, whose loss, tokens and cost its summary then has."""
    last = summary.get("checkpoint")
    return last is None or is_of(last, checkpoint)


def _cost(trained: Trained) -> list[str]:
    run = trained.run
    summary = read_json(run / SUMMARY) if run else {}
    if not summary:
        return ["Not known: the run folder is not beside the checkpoint, or the run has not ended."]
    lines = []
    if not _is_last(summary, trained.checkpoint):
        lines += [f"Of the whole run, which went on behind `{trained.checkpoint.name}`:", ""]
    lines += [f"- {summary['tokens']:,} tokens in {summary['steps']:,} steps"] if summary.get("tokens") else []
    if summary.get("wall_s") is not None:
        lines.append(f"- {summary['wall_s'] / 3600:,.2f} hours on {summary.get('devices', 1)} device(s)")
    if summary.get("usd") is not None:
        lines.append(f"- ${summary['usd']:,.4f} ({summary.get('rate_source')})")
    else:
        lines.append(f"- dollars not known: {summary.get('rate_source')}")
    return lines


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""

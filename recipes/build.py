"""Recipe → Composer objects, through LLM Foundry's registries. The only place that knows both keys and constructors."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from composer import Callback, DataSpec, Evaluator, Trainer
from composer.loggers import ConsoleLogger, LoggerDestination
from composer.loggers.progress_bar_logger import ProgressBarLogger
from composer.profiler import JSONTraceHandler, Profiler, cyclic_schedule
from composer.utils import dist
from llmfoundry import registry
from llmfoundry.callbacks import HuggingFaceCheckpointer
from llmfoundry.data.dataloader import build_dataloader
from llmfoundry.utils import builders
from llmfoundry.utils.config_utils import EvalConfig, TrainConfig, process_init_device
from llmfoundry.utils.registry_utils import import_file

from recipes.callbacks.budget import BudgetGuard
from recipes.callbacks.cost import CostMonitor
from recipes.callbacks.log_lines import LogLines
from recipes.callbacks.metrics_file import MetricsFile
from recipes.config.keys import Problem, RecipeError
from recipes.config.load import Recipe
from recipes.config.sections import loaders
from recipes.cost.hardware import gpu_from_device_name
from recipes.cost.parameters import MODEL_DEFAULTS, MPT, OURS, RWKV
from recipes.cost.rate import cost_section
from recipes.cost.setup import shards
from recipes.models.compiling import checkpoint_blocks, checkpoint_by_operation, compile_blocks
from recipes.reports.runs import METRICS, run_folder, run_name
from recipes.run import Run
from recipes.training.batches import Batches, microbatch_with_room, plan_batches
from recipes.training.checkpoints import as_composer_lists, latest_filename, resumes, save_filename
from recipes.training.lora import add_lora, reset_lora
from recipes.training.preferences import PreferenceModel, build_preference_loader
from recipes.training.processes import log_from, parallelism, prepare_process
from recipes.training.resuming import how_it_starts, resume_point
from recipes.training.startup import spare_questions
from recipes.training.turns import taking_turns
from recipes.weights.pretrained import load_pretrained

log = logging.getLogger("recipes")

DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
EVAL_DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(EvalConfig)}
EVAL_DEFAULTS |= {name: DEFAULTS[name] for name in ("expandable_segments", "max_split_size_mb", "cuda_load_lazy")}
DEFAULTS["autoresume"] = None  # LLM Foundry's off becomes: on wherever there is something to resume from


@functools.cache
def register_components() -> None:
    """Put this project's models, callbacks and loggers into LLM Foundry's registries."""
    spare_questions()
    from recipes.callbacks.recompiles import RecompileCounter
    from recipes.models.mpt import ComposerMPTCausalLM
    from recipes.models.rwkv import ComposerRwkvCausalLM
    from recipes.training.optimizers import FusedAdamW

    registry.models.register(MPT, func=ComposerMPTCausalLM)  # in the place of LLM Foundry's
    registry.models.register(RWKV, func=ComposerRwkvCausalLM)
    registry.optimizers.register("fused_adamw", func=FusedAdamW)
    registry.dataloaders.register("preferences", func=build_preference_loader)
    registry.callbacks.register("cost_monitor", func=CostMonitor)
    registry.callbacks.register("budget_guard", func=BudgetGuard)
    registry.callbacks.register("recompile_counter", func=RecompileCounter)
    registry.loggers.register("metrics_file", func=MetricsFile)


def build(recipe: Recipe) -> Run:
    """Build everything a training run needs, and load the checkpoint it goes on from.

    Raises RecipeError where a section cannot be built; the message carries the constructor's own words.
    """
    register_components()
    log_from(recipe.get("python_log_level"))
    settings = {**DEFAULTS, **{k: v for k, v in copy.deepcopy(dict(recipe.values)).items() if v is not None}}
    name, folder = run_name(recipe), run_folder(recipe)
    import_code(recipe)
    with reporting(recipe, "seed"):
        prepare_process(settings)

    cost = _cost_monitor(recipe, settings, name, folder)
    fsdp = settings["fsdp_config"] if dist.get_world_size() > 1 else None
    tensor_parallel = settings["tp_config"] if dist.get_world_size() > 1 else None
    batches = plan_batches(recipe, dist.get_world_size())
    microbatch = _microbatch(recipe, batches, is_split=shards(fsdp) or tensor_parallel is not None)
    settings["device_eval_batch_size"] = recipe.get("device_eval_batch_size", 1 if microbatch == "auto" else microbatch)

    with reporting(recipe, "tokenizer"):
        tokenizer = builders.build_tokenizer(settings["tokenizer"]["name"], settings["tokenizer"].get("kwargs") or {})
    with taking_turns():
        with reporting(recipe, "train_loader"):
            loader = complete_loader(settings["train_loader"], settings)
            train_loader = build_dataloader(loader, tokenizer, batches.sequences_per_device)
            if _is_empty(train_loader):  # Composer would ask it for ever
                raise ValueError(f"its data gives no batch of {batches.sequences_per_step} {batches.items}")
            if recipe.get("model.name") in OURS and not recipe.get("dpo"):
                train_loader.batch_transforms = without_needless_mask
        evaluators = build_evaluators(recipe, settings, tokenizer)
    with reporting(recipe, "model"):
        model = build_model(settings["model"], tokenizer, fsdp, tensor_parallel)
    if recipe.get("dpo"):
        with reporting(recipe, "dpo"):
            model = PreferenceModel(model, **recipe["dpo"])
    if settings.get("selective_checkpointing"):
        checkpoint_by_operation(model)
    if settings.get("compile"):
        compile_blocks(model)
    if (settings["fsdp_config"] or {}).get("activation_checkpointing") and not shards(fsdp):
        checkpoint_blocks(model)  # Composer does it where it shards
    with reporting(recipe, "optimizer"):
        optimizer = builders.build_optimizer(model, settings["optimizer"].pop("name"), settings["optimizer"])
    with reporting(recipe, "scheduler"):
        scheduler = builders.build_scheduler(settings["scheduler"].pop("name"), settings["scheduler"])
    if settings["eval_loader"] is not None:
        evaluators = builders.add_metrics_to_eval_loaders(evaluators, loss_metrics(model))

    callbacks = [cost, *_callbacks(recipe, settings, batches)]
    callbacks += _tasks_in_the_loop(recipe, settings, tokenizer, folder, cost)
    algorithms = [builders.build_algorithm(n, kwargs or {}) for n, kwargs in (settings["algorithms"] or {}).items()]
    found = resume_point(recipe)
    loggers = [MetricsFile(str(folder / METRICS)), *build_loggers(recipe, settings)]
    on_terminal = sys.stderr.isatty()
    if settings["progress_bar"] and not on_terminal:
        loggers.append(LogLines())
    with reporting(recipe, "trainer"):
        trainer = Trainer(
            run_name=name,
            seed=settings["seed"],
            model=model,
            train_dataloader=train_loader,
            train_subset_num_batches=settings["train_subset_num_batches"],
            eval_dataloader=evaluators,
            optimizers=optimizer,
            schedulers=scheduler,
            max_duration=settings["max_duration"],
            eval_interval=settings["eval_interval"],
            eval_subset_num_batches=settings["eval_subset_num_batches"],
            progress_bar=settings["progress_bar"] and on_terminal,
            log_to_console=settings["log_to_console"],
            console_log_interval=settings["console_log_interval"],
            loggers=loggers,
            callbacks=callbacks,
            precision=settings["precision"],
            algorithms=algorithms,
            device_train_microbatch_size=microbatch,
            parallelism_config=parallelism(fsdp, tensor_parallel, model),
            save_folder=settings["save_folder"],
            save_filename=save_filename(recipe),
            save_latest_filename=latest_filename(recipe),
            save_interval=settings["save_interval"],
            save_num_checkpoints_to_keep=settings["save_num_checkpoints_to_keep"],
            save_overwrite=settings["save_overwrite"],
            save_weights_only=settings["save_weights_only"],
            save_ignore_keys=settings["save_ignore_keys"],
            load_path=settings["load_path"],
            load_weights_only=settings["load_weights_only"],
            load_strict_model_weights=settings["load_strict_model_weights"],
            load_ignore_keys=settings["load_ignore_keys"],
            autoresume=resumes(settings),
            python_log_level=settings["python_log_level"] if recipe.get("python_log_level") else None,
            dist_timeout=settings["dist_timeout"],
            profiler=_profiler(settings["profiler"], folder),
            compile_config=settings["compile_config"],
            spin_dataloaders=settings["spin_dataloaders"],
            # the loss of preferences is a mean over pairs, however long they are
            accumulate_train_batch_on_tokens=settings["accumulate_train_batch_on_tokens"] and not recipe.get("dpo"),
        )
    if recipe.get("pretrained") and trainer.state.timestamp.batch == 0:  # a run that goes on has its own weights
        with reporting(recipe, "pretrained"):
            load_pretrained(trainer.state.model, recipe["model"], Path(recipe["pretrained"]))
    has_own_adapters = recipe.get("model.name") == MPT and recipe.get("model.peft_config")
    if has_own_adapters and not settings["load_path"] and trainer.state.timestamp.batch == 0:
        reset_lora(trainer.state.model, settings["seed"])
    if found is not None and trainer._checkpoint_saver is not None:
        # so that checkpoints from before the restart count for save_num_checkpoints_to_keep
        trainer._checkpoint_saver.saved_checkpoints = [as_composer_lists(path) for path in found.whole]
    # Composer's checkpoint is saved before the export of the same step, which may fail
    trainer.state.callbacks.sort(key=lambda callback: isinstance(callback, HuggingFaceCheckpointer))
    say_the_recipe_once(trainer)
    if settings["log_config"]:
        flattened = (settings["metadata"] or {}) if settings["flatten_metadata"] else {}
        trainer.logger.log_hyperparameters({**flattened, **recipe.values})
    return Run(recipe, name, folder, trainer, cost, str(found) if found is not None else how_it_starts(settings))


def import_code(recipe: Recipe) -> None:
    """`code_paths`: the user's own code registers what the recipe names.

    Raises RecipeError: a file that cannot be imported, or that would change the recipe after it was judged.
    """
    known = set(registry.config_transforms.get_all())
    for path in recipe.get("code_paths") or []:
        with reporting(recipe, "code_paths"):
            import_file(path)
    own = sorted(set(registry.config_transforms.get_all()) - known)
    if own:
        text = f"registers the config transform {', '.join(own)}: recipes are not changed after they are checked; write"
        where = ("code_paths",)
        raise RecipeError([Problem(recipe.place(where), where, f"{text} into the recipe what it sets")])


@contextlib.contextmanager
def reporting(recipe: Recipe, key: str) -> Iterator[None]:
    """Turn what a constructor says into a problem at the section's place in the recipe."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:
        if os.environ.get("RECIPES_TRACEBACK"):
            raise
        text = str(error).strip() or type(error).__name__
        hint = " (RECIPES_TRACEBACK=1 shows where)"
        where = (key,) if key in recipe.values else ()  # the trainer takes what many sections say
        said = f"{'' if where else f'the {key} '}cannot be built: {text}{hint}"
        raise RecipeError([Problem(recipe.place(where), where, said)]) from error


def _is_empty(loader: DataSpec) -> bool:
    try:
        return len(loader.dataloader) == 0  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):  # known only once it is read
        return False


def complete_loader(loader: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what the recipe says elsewhere, and what torch's DataLoader wants when it has no workers."""
    dataset = loader.setdefault("dataset", {})
    dataset.setdefault("max_seq_len", settings["max_seq_len"])
    if loader["name"] == "finetuning":
        dataset.setdefault("decoder_only_format", settings["model"]["name"] != "hf_t5")
    if loader.get("num_workers") == 0:
        loader["prefetch_factor"] = None
        loader["persistent_workers"] = False
    if not torch.cuda.is_available():
        loader.setdefault("pin_memory", False)
    return loader


def _microbatch(recipe: Recipe, batches: Batches, is_split: bool) -> float | str:
    """The size of a micro-batch; `auto` where Composer searches for it, which it does not with FSDP2."""
    if batches.microbatch is not None:
        return batches.microbatch
    if not torch.cuda.is_available():
        return batches.sequences_per_device
    if not is_split:
        return "auto"
    gpu, memory_gib = gpu_from_device_name(torch.cuda.get_device_name()), torch.cuda.mem_get_info()[1] / 2**30
    size = microbatch_with_room(recipe, batches.devices, gpu, memory_gib)
    log.info("micro-batch: auto → %s of %s, for which memory is counted to suffice", size, batches.sequences_per_device)
    return size


def without_needless_mask(batch: Any) -> Any:
    """Leave out an attention mask that masks nothing, while it is on the CPU: to ask a GPU makes it catch up first."""
    if "attention_mask" in batch and bool(batch["attention_mask"].all()):
        del batch["attention_mask"]
    return batch


def build_evaluators(recipe: Recipe, settings: dict[str, Any], tokenizer: Any) -> list[Evaluator]:
    """Loaders of validation data; tasks are not theirs (eval/in_loop.py)."""
    for _, loader in loaders(settings, ["eval_loader"]):
        complete_loader(loader, settings)
    if not settings["eval_loader"]:
        return []
    with reporting(recipe, "eval_loader"):
        return builders.build_eval_loaders(settings["eval_loader"], tokenizer, settings["device_eval_batch_size"])


def _tasks_in_the_loop(
    recipe: Recipe, settings: Mapping[str, Any], tokenizer: Any, folder: Path, cost: CostMonitor
) -> list[Callback]:
    """The evaluation of `icl_tasks` and `harness_tasks` while the run goes on, where there are any."""
    if not settings["icl_tasks"] and not recipe.get("harness_tasks"):
        return []
    from eval.in_loop import TaskEvaluation

    with reporting(recipe, "icl_tasks" if settings["icl_tasks"] else "harness_tasks"):
        return [
            TaskEvaluation(
                tokenizer,
                cost,
                folder,
                interval=recipe.get("task_interval") or settings["eval_interval"],
                at_start=bool(settings.get("eval_first")),
                icl_tasks=settings["icl_tasks"],
                harness_tasks=recipe.get("harness_tasks"),
                gauntlet=settings["eval_gauntlet"],
                max_seq_len=min(settings.get("icl_seq_len") or settings["max_seq_len"], settings["max_seq_len"]),
                reads=settings["max_seq_len"],
                batch_size=max(1, int(settings["device_eval_batch_size"])),
                subset_batches=settings["icl_subset_num_batches"],
            )
        ]


def loss_metrics(model: Any) -> list[str]:
    from llmfoundry.eval.metrics.nlp import InContextLearningMetric

    metrics = model.get_metrics(is_train=False)
    return [name for name, metric in metrics.items() if not isinstance(metric, InContextLearningMetric)]


def build_model(config: dict[str, Any], tokenizer: Any, fsdp: dict[str, Any] | None, tp: dict[str, Any] | None) -> Any:
    if not shards(fsdp) and config.get("init_device") in ("meta", "mixed"):
        config["init_device"] = "cpu"  # nothing would fill in the weights later
    init_context = process_init_device(config, fsdp, tp)
    name = config.pop("name")
    lora = config.pop("peft_config", None) if name == MPT else None
    size, ids = config.get("vocab_size") or MODEL_DEFAULTS["vocab_size"], 0 if tokenizer is None else len(tokenizer)
    if name in OURS and ids > size:  # Composer would make more, and nothing that reads the recipe could use the model
        raise ValueError(f"its tokenizer has {ids} tokens, and vocab_size is {size}: set it to at least {ids}")
    model = builders.build_composer_model(
        name=name,
        tokenizer=tokenizer,
        init_context=init_context,
        master_weights_dtype=config.pop("master_weights_dtype", None),
        cfg=config,
    )
    if lora:
        add_lora(model.model, lora)
    return model


def _cost_monitor(recipe: Recipe, settings: Mapping[str, Any], name: str, folder: Path) -> CostMonitor:
    """The meter, running: before anything is built, so that what dies in that time is billed too."""
    meter = {"ledger": str(folder / "ledger.jsonl"), "started_at": psutil.Process().create_time()}
    with reporting(recipe, "cost"):
        monitor = CostMonitor(**{**meter, **cost_section(settings)})
        monitor.open(name)
    return monitor


def _callbacks(recipe: Recipe, settings: Mapping[str, Any], batches: Batches) -> list[Callback]:
    # LLM Foundry gives callbacks the recipe with what a run makes of it
    train_config = {
        **recipe.values,
        "train_loader": complete_loader(copy.deepcopy(recipe["train_loader"]), recipe.values),
        "n_gpus": batches.devices,
        "device_train_batch_size": batches.sequences_per_device,
        "device_train_microbatch_size": batches.microbatch or "auto",
        "device_train_grad_accum": batches.gradient_accumulation or "auto",
        "device_eval_batch_size": settings["device_eval_batch_size"],
    }
    wanted = {name: kwargs for name, kwargs in (settings["callbacks"] or {}).items() if name != "cost_monitor"}
    if settings.get("compile"):
        wanted.setdefault("recompile_counter", {})
    callbacks: list[Callback] = []
    for name, kwargs in wanted.items():
        with reporting(recipe, "callbacks"):
            callbacks.append(builders.build_callback(name, kwargs or {}, train_config=copy.deepcopy(train_config)))
    return callbacks


def _profiler(section: dict[str, Any] | None, folder: Path) -> Profiler | None:
    """LLM Foundry's `profiler:` section: a schedule, a JSON trace handler, and Composer's own arguments."""
    if not section:
        return None
    schedule = cyclic_schedule(**section.pop("schedule", {}))
    traces = section.pop("json_trace_handler", None)
    handlers = [JSONTraceHandler(**{"folder": str(folder / "traces"), **traces})] if traces else []
    section = {"torch_prof_folder": str(folder / "torch_traces"), **section}
    return Profiler(schedule=schedule, trace_handlers=handlers, **section)


def build_loggers(recipe: Recipe, settings: Mapping[str, Any]) -> list[LoggerDestination]:
    """The loggers that the recipe names."""
    loggers: list[LoggerDestination] = []
    for name, kwargs in (settings["loggers"] or {}).items():
        with reporting(recipe, "loggers"):
            loggers.append(builders.build_logger(name, kwargs or {}))
    return loggers


def say_the_recipe_once(trainer: Trainer) -> None:
    """Keep Composer from printing the hyper-parameters: the resolved recipe is on the screen already."""
    for destination in trainer.logger.destinations:
        if isinstance(destination, (ConsoleLogger, ProgressBarLogger)):
            destination.hparams_already_logged_to_console = True

"""A quick start: what Composer and LLM Foundry import and ask before every run, and training does not use, waits.

Importing is most of a start. `light_imports` is put around it; `spare_questions` is for what comes after.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import platform
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Clients of services, and science that only metrics of sound and images want: seconds, for names that nobody calls.
WAIT = ("mlflow", "mlflow.data", "mlflow.transformers", "mcli", "scipy", "scipy.signal", "scipy.optimize")

# transformers asks for it at once where it is installed, for one way to sample with a draft model.
HIDDEN = ("sklearn",)


@contextlib.contextmanager
def light_imports() -> Iterator[None]:
    """Modules imported in here get stand-ins for WAIT, which import the real ones when something of theirs is used.

    Whoever imports one of them afterwards gets the real one. Garbage is not collected meanwhile, nor looked for in
    these modules later: they stay.
    """
    gc.disable()
    for name in HIDDEN:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # Python's way to say: not installed
    for name in WAIT:
        if name not in sys.modules:
            sys.modules[name] = _StandIn(name)
            package, _, child = name.rpartition(".")
            if isinstance(sys.modules.get(package), _StandIn):
                setattr(sys.modules[package], child, sys.modules[name])
    try:
        yield
    finally:
        _take_away_stand_ins()
        for name in HIDDEN:
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)
        gc.freeze()
        gc.enable()


def _take_away_stand_ins() -> None:
    for name in WAIT:
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


class _StandIn(ModuleType):
    """A module that knows its name alone."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # libraries ask for it, to see whether a package is installed

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Later(self.__name__, name)


class _Later:
    """What a module has under a name, imported when it is called or an attribute of it is asked for."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _real(self) -> Any:
        _take_away_stand_ins()
        module = importlib.import_module(self._module)
        if not hasattr(module, self._name):
            return importlib.import_module(f"{self._module}.{self._name}")
        return getattr(module, self._name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)


def spare_questions() -> None:
    """Answer at once what Composer asks of each model and each Trainer in seconds."""
    from composer.models import huggingface
    from composer.utils import collect_env

    huggingface._is_registered_causal_lm = is_causal_lm
    # starts a Python of its own; a Trainer does not use the answer
    collect_env.get_cpu_model = platform.machine  # type: ignore[assignment]


def is_causal_lm(model: Any) -> bool:
    """Whether a model is one of transformers' for causal language modeling, or a subclass of one.

    Composer compares classes, for which transformers imports the code of every model that it has; names say the same.
    """
    from composer.models.huggingface import maybe_get_underlying_model
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as known

    names: set[str] = set()
    for entry in known._model_mapping.values():
        names.update([entry] if isinstance(entry, str) else entry)
    model = maybe_get_underlying_model(model)
    return any(kind.__name__ in names for kind in type(model).__mro__) or isinstance(
        model, tuple(known._extra_content.values())
    )

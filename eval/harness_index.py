"""Where tasks of lm-evaluation-harness are, without its index of all of them, which takes ten seconds to make.

Also which files decide what a task of one's own asks.
"""

from __future__ import annotations

import glob
import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

YAML = (".yaml", ".yml")
DATA_FOLDERS = ("data_dir", "dataset_path")  # keys whose folders are read whole


def index_of(names: Sequence[str], include: Sequence[Path]) -> Any:
    """The harness's TaskManager with an index that has all of these names, if anything has.

    include: folders with YAML files of one's own, whose tasks come before the harness's.
    """
    from lm_eval.tasks import TaskManager

    def manager(folders: Iterable[Path], defaults: bool = False) -> Any:
        return TaskManager(include_path=list(folders) or None, include_defaults=defaults)

    own = manager(include)
    others = [name for name in names if name not in own.all_tasks and Path(name).suffix not in YAML]
    if not others:
        return own
    folders = folders_of(others)
    return manager(include, defaults=True) if folders is None else manager([*folders, *include])


def folders_of(names: Sequence[str]) -> list[Path] | None:
    """The folders of tasks that come with the harness.

    None: one of the names is a group or a tag, whose members may be anywhere, or nothing.
    """
    import lm_eval.tasks

    quoted = b"|".join(re.escape(name.encode()) for name in names)
    key = rb"['\"]?(?:task|group|tag)['\"]?\s*:"
    mention = re.compile(rb"^(?:%b|\s*-)\s*['\"]?(?:%b)['\"]?\s*$" % (key, quoted), re.MULTILINE)
    found: dict[str, Path] = {}
    for path in sorted(Path(lm_eval.tasks.__file__).parent.rglob("*.yaml")):
        if mention.search(path.read_bytes()):
            kinds = _declared(path)
            if any(name in kinds["group"] or name in kinds["tag"] for name in names):
                return None
            for name in kinds["task"]:
                found.setdefault(name, path.parent)  # the first counts, as in the harness
    return [*dict.fromkeys(found[name] for name in names)] if all(name in found for name in names) else None


def unknown_names(names: Sequence[str], include: Sequence[Path]) -> list[str]:
    """Those that no YAML file of these folders, or of the harness, has in it: in a second, without the harness."""
    patterns = ("*", "?", "[")
    wanted = {n for n in names if Path(n).suffix not in YAML and not any(p in n for p in patterns)}
    package = importlib.util.find_spec("lm_eval")
    own = [Path(folder) / "tasks" for folder in (package.submodule_search_locations or [])] if package else []
    # tags stand in files without an ending too, which tasks include
    kinds = (*YAML, "")
    files = (p for folder in [*include, *own] for p in folder.rglob("*") if p.suffix in kinds and p.is_file())
    for path in files:
        if not wanted:
            break
        content = path.read_bytes()
        wanted -= {name for name in wanted if name.encode() in content}
    return sorted(wanted)


def _declared(path: Path) -> dict[str, list[str]]:
    """What a YAML file declares: the name of a task or a group, and tags."""
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        config = load_yaml(path, resolve_func=False)
    except Exception:  # the harness leaves such files out
        config = {}
    values = {kind: config.get(kind) for kind in ("task", "group", "tag")}
    return {
        kind: [value] if isinstance(value, str) else [] if kind == "task" else list(value or [])
        for kind, value in values.items()
    }


def files_of(task: Path) -> list[Path]:
    """A task's YAML file and the local files that it names: those it includes, its functions and its data.

    With a function come all modules beside it, one of which it may import.
    """
    found: dict[Path, None] = {}
    waiting = [task]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found[path] = None
        for key, tag, text in _scalars(path) if path.suffix in YAML else ():
            if tag == "!function":
                module = text.rpartition(".")[0].replace(".", "/")
                waiting += [path.parent / f"{module}.py", *path.parent.glob("*.py"), *path.parent.glob("*/*.py")]
            elif "\n" not in text and len(text) < 1000:  # else no path
                names = [Path(text), path.parent / text, *map(Path, sorted(glob.glob(text, recursive=True)))]
                waiting += names if text else []
                if key in DATA_FOLDERS and Path(text).is_dir():
                    waiting += sorted(Path(text).rglob("*"))
    return sorted(found)


def _scalars(path: Path) -> Iterator[tuple[str, str, str]]:
    """(the key it stands under, tag, text) of everything in a YAML file; nothing of one that is broken."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        key, node = waiting.pop()
        if isinstance(node, yaml.ScalarNode):
            yield key, node.tag, node.value
        elif isinstance(node, yaml.MappingNode):
            waiting += [(str(name.value), value) for name, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(key, item) for item in node.value]

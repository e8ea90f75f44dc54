"""Fragments, overrides, interpolation, and the place of every key."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.mixture import fragment, plan_mixture
from recipes.__main__ import main
from recipes.config.check import load_checked
from recipes.config.keys import COMMAND_LINE, RecipeError
from recipes.config.load import load

from ..conftest import ROOT

Write = Callable[..., Path]


def problems(error: pytest.ExceptionInfo[RecipeError]) -> list[str]:
    return [str(problem) for problem in error.value.problems]


def test_the_recipes_of_the_documents_are_sound(
    shards: Path,
    recipe_file: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    training, weights = (ROOT / "recipes" / name for name in ("README.md", "weights/README.md"))
    (example,) = re.findall(r"```yaml\n(# mine\.yaml.+?)```", training.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yamls").symlink_to(ROOT / "yamls")
    recipe_file(fragment(plan_mixture([f"{shards}=1"], 2.5e9), "of the README"), "mixture.yaml")
    recipe_file(example, "mine.yaml")
    assert main(["check", "mine.yaml"]) == 0
    assert "The recipe is sound." in capsys.readouterr().out
    (tuning,) = re.findall(r"```yaml\n(# chat\.yaml.+?)```", weights.read_text(), re.DOTALL)
    recipe_file(tuning, "chat.yaml")
    assert main(["check", "chat.yaml"]) == 0
    assert "The recipe is sound." in capsys.readouterr().out
    assert load("chat.yaml").get("eval_loader.dataset.streams.mine.split") == "val"
    recipe = load("mine.yaml", ["eval_loader=null", "callbacks.budget_guard={budget_usd: 500}"])
    assert recipe["fsdp_config"] is recipe["eval_loader"] is None
    assert recipe["callbacks"]["budget_guard"] == {"budget_usd": 500}
    assert recipe["callbacks"].keys() > {"budget_guard"}


def test_precedence_is_fragments_in_order_then_recipe_then_command_line(recipe_file: Write) -> None:
    recipe_file("a: 1\nb: 1\nc: 1\nd: 1\nsection: {x: 1, y: 1}\n", "base/one.yaml")
    recipe_file("b: 2\nc: 2\nd: 2\nsection: {y: 2}\n", "base/two.yaml")
    path = recipe_file("include: [base/one.yaml, base/two.yaml]\nc: 3\nd: 3\n")
    recipe = load(path, ["d=4", "section.z=4"])
    assert {k: recipe[k] for k in "abcd"} == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert recipe["section"] == {"x": 1, "y": 2, "z": 4}
    assert "include" not in recipe.values


def test_every_key_knows_where_it_was_written(recipe_file: Write) -> None:
    fragment = recipe_file("model:\n  d_model: 8\n  attn_config:\n    alibi: true\n", "models/m.yaml")
    path = recipe_file("include: models/m.yaml\nmodel:\n  n_heads: 2\nlist:\n  - x: 1\n  - x: 2\n")
    recipe = load(path, ["model.n_layers=3"])
    assert recipe.place(("model", "attn_config", "alibi")).file == str(fragment)
    assert recipe.place(("model", "attn_config", "alibi")).line == 4
    assert recipe.place(("model", "n_heads")).line == 3
    assert recipe.place(("list", 1, "x")).line == 6
    assert recipe.place(("model", "n_layers")) == COMMAND_LINE
    assert load(path, ["list=[{x: 3}]"]).place(("list",)) == COMMAND_LINE
    # a key that stands nowhere has the place of its section
    assert recipe.place(("model", "attn_config", "rope")).line == 3


def test_numbers_are_numbers(recipe_file: Write) -> None:
    recipe = load(
        recipe_file("a: 1e-4\nb: 6.0e-4\nc: 1_000\nd: 2026-11-25\n"), ["e=2e-4", "f=[0.9,0.95]", "g=", "h=true"]
    )
    assert recipe["a"] == 1e-4
    assert recipe["b"] == 6e-4
    assert recipe["c"] == 1000
    assert recipe["d"] == "2026-11-25"
    assert recipe["e"] == 2e-4
    assert recipe["f"] == [0.9, 0.95]
    assert recipe["g"] is None
    assert recipe["h"] is True


def test_interpolation_follows_overrides(recipe_file: Write) -> None:
    path = recipe_file(
        "variables: {length: 8}\nmax_seq_len: ${variables.length}\nmodel: {max_seq_len: '${max_seq_len}'}\n"
    )
    assert load(path)["model"]["max_seq_len"] == 8
    assert load(path, ["variables.length=16"])["model"]["max_seq_len"] == 16


def test_interpolations_are_those_of_omegaconf(recipe_file: Write) -> None:
    text = "a: {x: 1, y: '${.x}', z: '${..n}'}\nn: m\nv: {m: 8}\nb: ${v.${n}}\nc: '${oc.select:v.none,9}'\n"
    recipe = load(recipe_file(text))
    assert (recipe["a"], recipe["b"], recipe["c"]) == ({"x": 1, "y": 1, "z": "m"}, 8, 9)


def test_an_override_into_a_section_that_is_referred_to_keeps_the_rest(recipe_file: Write) -> None:
    path = recipe_file("variables: {c: {guard: {usd: 5}}}\ncallbacks: ${variables.c}\n")
    assert load(path, ["callbacks.lr={}"])["callbacks"] == {"guard": {"usd": 5}, "lr": {}}
    assert load(path, ["callbacks.guard.usd=6"])["variables"] == {"c": {"guard": {"usd": 5}}}


def test_of_merged_keys_the_last_counts_whatever_their_length(recipe_file: Write) -> None:
    """PyYAML 6.0.4 takes the first of two names of one letter."""
    text = "v:\n  small: &small {r: 4, alpha: 8}\n  large: &large\n    <<: *small\n    r: 64\n"
    recipe = load(recipe_file(text + "a:\n  <<: *large\nb: {<<: [*small, *large], alpha: 9}\n"))
    assert recipe["a"] == {"r": 64, "alpha": 8}
    assert recipe["b"] == {"r": 4, "alpha": 9}


def test_a_key_holds_an_anchor_only_where_it_is_used(recipe_file: Write) -> None:
    assert load(recipe_file("seeed: &s 17\nn: &n 3\nb: *n\n")).variables == {"n"}


def test_all_bad_interpolations_are_named(recipe_file: Write) -> None:
    path = recipe_file("a: ${nowhere}\nb:\n  c: ${also.nowhere}\nd: ${oc.env:HOME}\n")
    with pytest.raises(RecipeError) as error:
        load(path)
    found = problems(error)
    assert len(found) == 3
    assert f"{path}:1: a: ${{nowhere}} is not a key" in found[0]
    assert f"{path}:3: b.c:" in found[1]
    assert "outside the recipe" in found[2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: {c: 2, c: 3}\n", ":2: b.c: stands twice, first on line 2"),
        ("a: [1, 2\n", "not valid YAML"),
        ("- 1\n- 2\n", "a mapping of keys, got list"),
        ("a: ${a}\n", "a: ${a} cannot be resolved: Recursive"),
        ("include: [nothing.yaml]\n", "no such file"),
        ("include: other.yaml\n", "may not include others"),
        (f"include: {'x' * 300}\n", "no such file"),
        ("a: {<<: 3}\n", "<< merges mappings, got scalar"),
        ("a: " + "{a: " * 30 + "1" + "}" * 30 + "\n", "more than 20 sections in each other"),
    ],
)
def test_files_that_cannot_be_read(recipe_file: Write, text: str, words: str) -> None:
    recipe_file("include: x.yaml\n", "other.yaml")
    with pytest.raises(RecipeError) as error:
        load(recipe_file(text))
    assert words in "\n".join(problems(error))


def test_a_recipe_that_is_not_there_lists_its_neighbours(recipe_file: Write) -> None:
    path = recipe_file("a: 1\n", "mpt-1b.yaml")
    with pytest.raises(RecipeError, match=r"no such recipe.*mpt-1b\.yaml"):
        load(path.with_name("mpt-1.yaml"))


def test_the_name_of_a_run_stays_as_it_is_written(recipe_file: Write) -> None:
    for name in ("010", "2026_01_31", "1e3"):
        assert load(recipe_file("seed: 1"), [f"run_name={name}"]).get("run_name") == name
    assert load(recipe_file("run_name: mine"), ["run_name=null"]).get("run_name") is None


def test_an_override_needs_a_key_and_a_value(recipe_file: Write) -> None:
    with pytest.raises(RecipeError) as error:
        load(recipe_file("a: 1\n"), ["foo", "=3", "a..b=1", "a=2"])
    assert len(error.value.problems) == 3
    assert "expected key=value" in problems(error)[0]


def test_lists_are_replaced_and_sections_merged(recipe_file: Write) -> None:
    recipe_file("betas: [0.9, 0.95]\ncallbacks: {a: {}, b: {}}\n", "base.yaml")
    recipe = load(recipe_file("include: base.yaml\nbetas: [0.8]\ncallbacks: {c: {}}\n"))
    assert recipe["betas"] == [0.8]
    assert list(recipe["callbacks"]) == ["a", "b", "c"]


def test_null_takes_away_what_a_layer_below_has_said(recipe_file: Write) -> None:
    recipe_file("optimizer: {name: a, eps: 1}\ncallbacks: {a: {}, b: {x: 1}}\nfsdp_config: {x: 1}\n", "base.yaml")
    path = recipe_file("include: base.yaml\nfsdp_config: null\ncallbacks: {a: null, c: null}\n")
    recipe = load(path, ["optimizer.name=b", "optimizer.eps=null", "callbacks.b.x=null"])
    assert recipe["optimizer"] == {"name": "b"}
    assert recipe["callbacks"] == {"b": {}, "c": None}  # c: null, of which nothing is below, is what the code takes
    assert recipe["fsdp_config"] is None


def test_null_is_the_value_of_a_variable(recipe_file: Write) -> None:
    path = recipe_file("variables: {remote: s3://a/b}\nstream: {remote: '${variables.remote}'}\n")
    assert load(path, ["variables.remote="])["stream"] == {"remote": None}


def test_the_optimizer_of_a_recipe_can_be_exchanged() -> None:
    lion = ["optimizer.name=decoupled_lionw", "optimizer.eps=null", "callbacks.memory_monitor=null"]
    recipe = load_checked(ROOT / "yamls" / "pretrain" / "mpt-quickstart.yaml", lion)
    assert recipe["optimizer"].keys() == {"name", "lr", "betas", "weight_decay"}
    assert "memory_monitor" not in recipe["callbacks"]


def test_the_resolved_recipe_reads_back_the_same(recipe_file: Write) -> None:
    recipe = load(recipe_file("a: 1.0e-08\nb: '1e3'\nc: null\nd: {e: [1, two, 3.5]}\nf: 100ba\n"))
    assert dict(load(recipe_file(recipe.to_yaml(), "again.yaml")).values) == dict(recipe.values)


@pytest.mark.parametrize(
    "text",
    [
        "a: \x07\n",
        "? [a, b]\n: 1\n",
        "null: 2\n",
        "a: !!set {x, y}\n",
        "a: !!bool maybe\n",
        "a: !!timestamp 2020-01-01\n",
        "model: &m {a: *m}\n",
        "a: " + "[" * 3000,
        "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
        "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d]\n",
        "include: 5\n",
        "include: [null]\n",
        "a: ${\n",
        "a: ${}\n",
        "a: ???\n",
        "a: !!python/object/apply:os.system [echo]\n",
        "x: " + "1" * 2_000_000,
    ],
    ids=lambda text: text[:24],
)
def test_hostile_files_are_refused_in_words(recipe_file: Write, text: str) -> None:
    with pytest.raises(RecipeError) as error:
        load(recipe_file(text))
    assert all(len(line) < 400 for line in problems(error))


def test_a_pipe_is_no_recipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(RecipeError, match="it is not a file"):
        load(tmp_path / "pipe.yaml")


@pytest.mark.parametrize("override", ["a=!!int abc", "a=!!set {x}", "a=&a {x: *a}", ".".join("a" * 500) + "=1"])
def test_hostile_overrides_are_refused_in_words(recipe_file: Write, override: str) -> None:
    with pytest.raises(RecipeError):
        load(recipe_file("a: 1\n"), [override])


def test_an_entry_of_a_list_can_be_overridden(recipe_file: Write) -> None:
    recipe = load(recipe_file("models:\n  - {x: 1, y: 1}\n  - {x: 2}\n"), ["models.0.x=5"])
    assert recipe["models"] == [{"x": 5, "y": 1}, {"x": 2}]

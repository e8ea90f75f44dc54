"""The table of recipes says where a model can be served before it is trained."""

from __future__ import annotations

import pytest

from recipes.planning.listing import main, print_list, rows, table_text
from recipes.weights.hf_architecture import CLASSES, family_of
from recipes.weights.hf_refusals import refusals


def test_every_recipe_says_what_it_exports_to() -> None:
    lines = {line.split("`")[1]: line for line in table_text().splitlines() if line.startswith("| `")}
    assert lines.keys() == {row.name for row in rows()}
    for row in rows():
        refused = refusals(row.recipe["model"])
        said = f"no: `{refused[0][0].removeprefix('model.')}`" if refused else CLASSES[family_of(row.recipe["model"])]
        assert said in lines[row.name]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pretrain/mpt-7b.yaml", "`MptForCausalLM`"),
        ("pretrain/mpt-1b.yaml", "no: `attn_config.alibi`"),
        ("pretrain/llama-3-8b.yaml", "`LlamaForCausalLM`"),
        ("pretrain/rwkv-7b.yaml", "`RwkvForCausalLM`"),
        ("pretrain/mpt-7b-storywriter-65k.yaml", "no: `attn_config.alibi_bias_max`"),
    ],
)
def test_what_a_recipe_exports_to(name: str, said: str) -> None:
    (line,) = [line for line in table_text().splitlines() if line.startswith(f"| `{name}`")]
    assert f"| {said} |" in line


def test_the_list_is_whole_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_list([])
    listed = capsys.readouterr().out
    assert "…" not in listed
    assert all(row.name.removesuffix(".yaml") in listed and row.tuning in listed for row in rows())


def test_help_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "--check" in capsys.readouterr().out

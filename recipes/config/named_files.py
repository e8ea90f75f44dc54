"""Sections that a recipe may keep in a file of their own, and name by its path."""

from __future__ import annotations

import dataclasses
import os

from recipes.config.keys import RecipeError
from recipes.config.load import Recipe, load

_SHAPES = {"icl_tasks": (list, "a list"), "eval_gauntlet": (dict, "a section")}


def with_named_files(recipe: Recipe) -> Recipe:
    """The recipe with the tasks and the averages that it names as files written out, to be checked like its own.

    Raises RecipeError for a file that is not one of them. One that is not there stays a name: that is said with all
    else that this machine lacks.
    """
    values, places = dict(recipe.values), dict(recipe.places)
    for key, (shape, words) in _SHAPES.items():
        path = values.get(key)
        if not isinstance(path, str) or not os.path.isfile(path):
            continue
        file = load(path)
        if not isinstance(file.get(key), shape):
            raise RecipeError(file.problem((key,), f"{path} must have {words} under this key"))
        values[key] = file[key]
        places |= {inner: place for inner, place in file.places.items() if inner[:1] == (key,)}
    return dataclasses.replace(recipe, values=values, places=places)

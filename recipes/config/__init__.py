"""A recipe, read and judged before anything is built. Only recipes/preflight looks at the machine.

load.py            fragments, the recipe, the command line, interpolation; yaml_files.py: one file
keys.py            paths of keys, where each was written, and what is wrong with them
schema.json        the grammar; schema.py writes it from top_level.py, a recipe's own keys, and components.py and
                   model_components.py, which tie sections to the code that reads them; grammar.py turns that code's
                   signatures into JSON Schema; meanings.yaml says what each key does, meanings.py puts it in
named_files.py     sections that a recipe keeps in a file of their own
reference.py       what a recipe may say, for `python -m recipes keys`
check.py           every unknown, missing and ill-typed key at once
contradictions.py  what keys demand of one another, by model_rules.py, run_rules.py and evaluation_rules.py;
                   sections.py: what rules read a recipe with; file_names.py: what files may be called
"""

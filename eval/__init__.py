"""Evaluation: what a run has bought.

evaluate.py     LLM Foundry's tasks and gauntlet, validation loss, samples; harness.py: lm-evaluation-harness
compare.py      two models on the same examples; contamination.py: is a task in the training data
in_loop.py      tasks while a training run goes on

models.py       which models a recipe means; loading.py: one, built; samples.py: texts that it goes on from
suite.py        a model through its tasks (tasks/: LLM Foundry's kinds); metrics.py: answers to scores
harness_tasks.py  the harness's tasks; harness_index.py: where they are; harness_lm.py: its `LM`;
                harness_chat.py: questions as conversations; harness_results.py, harness_file.py: its scores
validation.py   the loss on held-out shards; baseline.py: what it must beat; generation.py: text

scoring.py      the core: questions.py in, log-probabilities out
batching.py     what is computed together; vectors.py, kv_cache.py, vocabulary.py: once, on what was kept, where asked
backbone.py     a model in two halves
cache.py        answers on disk; digests.py: of what; results.py: scores on disk and as a table; progress.py: the bar
"""

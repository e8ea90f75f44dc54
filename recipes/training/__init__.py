"""The parts of a run that recipes/build.py puts together.

startup.py      what Composer and LLM Foundry import and ask at once, spared
processes.py    the processes, and how they share the model
batches.py      sequences and durations -> micro-batches, steps, tokens (no torch)
checkpoints.py  checkpoints that are whole or not there; resuming.py: which one a run goes on from
optimizers.py   optimizers beside LLM Foundry's
lora.py         adapters in the model; preferences.py: direct preference optimisation
"""

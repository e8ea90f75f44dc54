"""The parts of a run that recipes/build.py puts together.

startup.py      what Composer and LLM Foundry import and ask at once, spared
processes.py    the processes, and how they share the model
run_lock.py     one training at a time in a run folder; loaders_lock.py: one run at a time that builds loaders
loaders.py      training and validation data; packing.py: examples packed into sequences
batches.py      sequences and durations -> micro-batches, steps, tokens (no torch); microbatch.py: `auto`
learning_rate.py  the rate at a step, by the recipe alone (no torch)
checkpoints.py  checkpoints that are whole or not there, sharded_folder.py: those of several files;
                resuming.py: which one a run goes on from
data_record.py  what the data was when the run began; full_disk.py: a full disk, in words
optimizers.py   optimizers beside LLM Foundry's
lora.py         adapters in the model; preferences.py: direct preference optimisation, pairs.py: its rows
watching.py     the meter, callbacks, tasks in the loop, the profiler
"""

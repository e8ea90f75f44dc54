"""What a run folder holds, by name. Imports nothing: whatever reads or writes one has the names from here."""

RUNS = "runs"  # run folders, where a recipe says nothing else

RECIPE = "recipe.yaml"  # the resolved recipe
METRICS = "metrics.jsonl"  # every metric, by step
LEDGER = "ledger.jsonl"  # what was paid for, also across kills
DATA = "data.json"  # folder of shards: SHA-256 of its manifest, or of its index
TASKS = "tasks.jsonl"  # evaluations while the run went on, one a line
CHECKPOINTS = "checkpoints"  # a folder, unless save_folder says otherwise
SUMMARY = "summary.json"  # what the run came to, once it has ended
EVALUATION = "results.json"  # what eval/evaluate.py found of it
HARNESS = "harness.json"  # what eval.harness found of it
TENSORBOARD = "tensorboard"  # a folder of that logger's, unless its log_dir says otherwise
REPORT = "report.html"  # all of these for a person

LOCK = ".lock"  # held by the process that trains
SHARDS_READ = ".shards-read.json"  # folder of shards: name, size and time of change of each file whose bytes were right

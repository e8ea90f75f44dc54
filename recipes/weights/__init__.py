"""Weights: found, read, brought in from Hugging Face folders and out into them.

trained.py             a model by the path that a user has: a run, a checkpoint, a folder
tensor_files.py        tensors in files, a few rows at a time; checkpoint_tensors.py: in Composer's checkpoints
number_types.py        the types of their numbers, and one written as another
merged.py              adapters (LoRA) read as the model that they make
hf_architecture.py     one architecture, two spellings; hf_rwkv.py: those of RWKV; hf_refusals.py: what has no second
hf_trained.py          what `hf_causal_lm` trained
hf_names.py            which rows of which tensor are which
pretrained.py          in: `pretrained: PATH`
export.py              out: `recipes export`; shards.py: its weights; folder_files.py: its tokenizer and configuration;
                       model_card.py: its README; atomic_folder.py: all of it at once
export_adapter.py      out: the adapters of a LoRA run alone
"""

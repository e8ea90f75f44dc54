"""The models: LLM Foundry's MPT with attention kernels chosen from the device it runs on, and RWKV-4.

mpt.py          MPT with the parts below; compiling.py: blocks compiled, operations recomputed
attention.py    the kernels behind one function; backends.py: what each can do; masks.py: who sees whom
loss.py         the loss without logits; log_probabilities.py: of whole answers, for preferences
rwkv.py         RWKV-4; rwkv_blocks.py: its blocks; wkv.py: their scan over the tokens
sharded.py      a parameter's part on this process
"""

"""What a sound recipe needs that is not on this machine: data, tokenizer, weights, GPU, memory, disk, packages.

Takes well under a second, without torch, a process group or a GPU, so that nothing is billed before it has passed.
"""

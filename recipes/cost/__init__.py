"""What a recipe costs: parameters, FLOPs, memory, hours, dollars and energy, in pure Python (no torch).

Every function takes plain numbers or a plain mapping with LLM Foundry's key names, so that a plan answers in well
under a second on a machine without a GPU. What each file knows is in README.md beside this one.
"""

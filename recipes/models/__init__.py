"""The models: LLM Foundry's MPT with attention kernels chosen from the device it runs on."""

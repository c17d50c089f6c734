"""How it runs: the torch.compile entry, providers and kernels, compiled pieces and sessions, debug output."""

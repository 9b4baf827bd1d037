"""The process: signals, other processes, GPUs, secrets."""

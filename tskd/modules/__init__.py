"""The Lightning modules: records in, tensors inside, records out. Nothing outside this folder knows Lightning."""

"""A finished run, taken further."""

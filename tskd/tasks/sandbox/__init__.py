"""Runs code that models write, shut in."""

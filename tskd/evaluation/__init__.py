"""Held-out questions, asked and graded."""

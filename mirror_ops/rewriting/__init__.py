"""Prompts rewritten at every step, so that the way forward mirrors the way back."""

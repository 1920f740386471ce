"""Nodes that make a mirror: inversion with a prompt rewritten at every step."""

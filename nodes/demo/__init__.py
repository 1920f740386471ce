"""Nodes of the embedded world."""

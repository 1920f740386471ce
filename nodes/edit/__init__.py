"""Nodes that edit a picture."""

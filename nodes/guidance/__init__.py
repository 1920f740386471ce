"""Nodes that guide an edit's predictions."""

"""Nodes that control or show attention."""

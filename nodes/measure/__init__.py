"""Nodes that say how good a mirror or an edit is."""

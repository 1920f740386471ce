"""Nodes that distil an edit into a small network: pairs, training, and use."""

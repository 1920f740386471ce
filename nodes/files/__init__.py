"""Nodes that keep mirrors and directions in files."""

"""Figures and pictures of how good a mirror or an edit is."""

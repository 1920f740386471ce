"""Measurements. Each prints a table and can write JSON; every figure of the README comes from one of them, but for
those of the fault tests."""

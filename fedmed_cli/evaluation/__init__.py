"""Measuring adapters on examples."""

"""Data files: read, checked, divided."""

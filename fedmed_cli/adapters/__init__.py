"""Adapters as numbers and as folders: the gate that reads them, the writer, signatures."""

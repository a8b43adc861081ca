"""Language models: found, loaded, computed with."""

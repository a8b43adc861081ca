"""Combining LoRA adapters: factor-space algebra, rules, weights, and the coordinator's decisions. Numpy only."""

"""Federated LoRA fine-tuning of medical language models by exchanging files."""

__version__ = "0.1.0"

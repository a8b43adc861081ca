"""Adapters in the forms that other programs take, each tried before it is called done."""

"""Flower as a carrier of the same bundles: a ServerApp, a ClientApp, and the app that names both."""

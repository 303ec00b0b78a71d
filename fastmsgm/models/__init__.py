"""Shipped models: one folder each, `config.json` and `model.safetensors`."""

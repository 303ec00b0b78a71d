"""Recipes: one script per experiment."""

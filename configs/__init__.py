"""Recipes: the typed form of one YAML file that describes one run, and how it is read. Imports no torch."""

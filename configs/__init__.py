"""Recipes: the schema of the YAML file that describes a run, and the code that reads it. Does not import torch."""

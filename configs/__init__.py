"""The schema of recipes, the YAML files that describe runs, and the code that reads them. Does not import torch."""

"""The recipe's classes, one module per stage."""

from configs.schema.recipe import Recipe

__all__ = ["Recipe"]

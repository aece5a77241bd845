"""The recipe's classes, one module a stage."""

from configs.schema.recipe import Recipe

__all__ = ["Recipe"]

"""Conversion to and from Hugging Face formats, through two-way tables of weight names and config keys."""

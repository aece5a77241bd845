"""The path of the Millrace checkout. Millrace runs from its checkout and is never installed."""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]

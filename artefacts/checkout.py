"""The path of the Millrace checkout. Millrace always runs from its checkout and is never installed as a package."""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]

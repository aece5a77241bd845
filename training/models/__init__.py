"""Model families, one short file each, built from the shared layers."""

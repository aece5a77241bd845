"""Model families, one short file each, over the shared layers."""

"""Duplicates over the whole corpus in bounded memory: keys written by part, sorted into buckets, decided by bucket."""

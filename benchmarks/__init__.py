"""Benchmarks of Millrace against its peers: the same work in one run on one machine, as ratios with their spread."""

"""Millrace against its peers: the same work on the same machine in one run, as ratios with their spread."""

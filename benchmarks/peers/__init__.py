"""How the peers' own documentation says to do the same work; each runs as a process of its own."""

"""The same work, done as the peers' own documentation recommends. Each runs in a process of its own."""

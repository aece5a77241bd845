"""Layers shared by the model families: single-device PyTorch, with no knowledge of ranks, meshes or the environment.

A tensor's name ends in its shape: ``x_BTD`` is indexed [batch, position, hidden].

    B  sequences in the micro-batch         E  routed experts
    T  positions in a sequence              K  experts per token
    M  tokens in the micro-batch, B * T     G  groups of experts
    D  hidden size                          F  feed-forward width (of one expert in a mixture)
    N  attention heads                      S  token slots, M * K: one row per (token, expert) pair
    Q  query/key width of a head, P + R     P  its non-rotary part; R  its rotary part
    Z  value width of a head                C  latent width (key/value), L  latent width (query)
    V  vocabulary                           R  (on CPU) expert rows, including padding
    c  width of a cache entry, C + R        e  width of a head's expanded latent, P + Z

In dense attention and cross-attention:

    H  width of a head                      L  key positions (S for an encoded source)

CPU-specific code lives in :mod:`training.layers.cpu`. A layer tries the CPU function first, and falls back to PyTorch's
operation if that function returns None.
"""

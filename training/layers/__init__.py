"""Layers shared by the model families: single-device PyTorch, with no knowledge of ranks, meshes or the environment.

Tensor names end in their shape: ``x_BTD`` is indexed [batch, position, hidden]. Each letter is one dimension, and so is
a digit, except in multiples such as ``2F``.

    B  sequences in the micro-batch         D  hidden size
    T  positions in a sequence              V  vocabulary
    M  tokens in the micro-batch, B * T

In attention:

    N  attention heads                      L  key positions
    H  width of a head, if Q equals Z       S  positions in an encoded source
    Q  query/key width of a head, P + R     Z  value width of a head
    P  non-rotary part of Q                 R  rotary part of Q
    C  latent width (key/value)             e  width per head that a latent expands to, P + Z
    J  queries of all heads, N * T          c  width of a cache entry: C + R, or 2 * H per head

In feed-forward layers, experts and the loss:

    E  routed experts                       S  token slots, M * K: one row per (token, expert) pair
    K  experts per token                    R  rows: S with padding, or a chunk of the logits' M
    G  groups of experts                    e  experts in a group, E / G
    F  feed-forward width (of one expert in a mixture)

CPU-specific code lives in :mod:`training.layers.cpu`. A layer tries the CPU function first, and falls back to PyTorch's
operation if that function returns None.
"""

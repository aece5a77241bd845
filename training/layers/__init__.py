"""Layers shared by the model families: plain single-device PyTorch, which knows no rank, mesh or environment.

Tensor names end in their shape: ``x_BTD`` is indexed [batch, position, hidden].

    B  sequences in the micro-batch         E  routed experts
    T  positions in a sequence              K  experts per token
    M  tokens in the micro-batch, B * T     G  groups of experts
    D  hidden size                          F  feed-forward width (of one expert in a mixture)
    N  attention heads                      S  token slots, M * K: one row per (token, expert) pair
    Q  query/key width of a head, P + R     P  its part without position; R  its rotated part
    Z  value width of a head                C  latent width (key/value), L  latent width (query)
    V  vocabulary                           R  rows of the experts where they are more than S, else as above
    c  an entry of the cache, C + R         e  what a latent is expanded to per head, P + Z

In dense attention, and in attention between two sequences:

    H  width of a head                      L  positions of the keys (S: of an encoded source)

What a CPU computes differently is behind :mod:`training.layers.cpu`: a layer asks it first, and takes PyTorch's
operation where it returns None.
"""

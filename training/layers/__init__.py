"""Layers shared by the model files: plain single-device PyTorch that knows no rank, mesh or environment.

Shapes are named by suffix throughout (``x_BTD`` is indexed [batch, position, hidden]):

    B  sequences in the micro-batch         E  routed experts
    T  positions in a sequence              K  experts a token is sent to
    M  tokens of the micro-batch, B * T     G  groups of experts
    D  hidden size                          F  feed-forward width (of one expert in the mixture)
    N  attention heads                      S  token slots, M * K: one row per (token, expert) pair
    Q  query/key width of a head, P + R     P  its part without position; R  its rotated part
    Z  value width of a head                C  latent width (key/value), L  latent width (query)
    V  vocabulary                           R  rows of the experts where they are more than S, else as above
    c  an entry of the cache, C + R         e  what a latent is expanded to for a head, P + Z

and where attention is dense, or between two sequences:

    H  width of a head                      L  positions of the keys (S: of an encoded source)
"""

"""Low-rank adapters: LoRA (arXiv 2106.09685) and DoRA (arXiv 2402.09353), with the same results as the peft library.

An adapted layer computes ``W x + scale * B A x``. ``A`` is random and ``B`` is zero at first, so training starts from
the model as it was. Adapters keep the names of the weights that they adapt: see :mod:`training.adapter_names`.

The adapters of routed experts belong to the decoder layer and not to its ``mlp``, which DeepSpeed's AutoEP replaces.
Every rank therefore holds the adapters of all experts, as ordinary parameters. A rank's gradient is zero for experts
that other ranks compute, so the sum over ranks is correct.
"""

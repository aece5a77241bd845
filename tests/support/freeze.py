"""Imported last by the process that others are forked from: from then on what is there is not searched for garbage."""

import gc

gc.collect()
gc.freeze()

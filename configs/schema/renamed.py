"""Renamed recipe keys: old name -> new name. A recipe with an old name is rejected; the error gives the new name."""

RENAMED = {
    "train.clip": "train.max_grad_norm",
    "train.checkpointing": "train.activation_checkpointing",
    "train.balance_step": "train.router_bias_update_rate",
    "train.stop_at": "train.simulate_crash_at",
}

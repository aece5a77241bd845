"""The DeepSpeed engine and everything that knows DeepSpeed; knows no model and no data set."""

"""The DeepSpeed engine and all code that depends on DeepSpeed. Independent of models and datasets."""

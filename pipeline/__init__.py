"""The data stages, which turn sources into documents, token shards and examples. They never import torch."""

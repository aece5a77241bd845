"""The DeepSpeed engine, expert parallelism, balancing and the loop; knows no model and no data set."""

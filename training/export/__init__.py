"""To and from the formats of Hugging Face: two-way tables of names and of configuration; what they lack is refused."""

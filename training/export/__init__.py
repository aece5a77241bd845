"""To and from the formats of Hugging Face, by two-way tables of names and configuration."""

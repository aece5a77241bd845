"""Sources of text. Each source lists its parts and reads every part into documents."""

"""Where text comes from: each source lists its parts and reads each part into documents."""

"""What every stage shares: where a run lies on disk, manifests, fingerprints, atomic publishing, locks, progress."""

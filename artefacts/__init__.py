"""What every stage uses: manifests, fingerprints, atomic files, locks, progress bars, messages. Knows no recipe."""

"""Tools that every stage uses: manifests, fingerprints, atomic writes, locks, progress bars and messages.

Nothing here depends on recipes.
"""

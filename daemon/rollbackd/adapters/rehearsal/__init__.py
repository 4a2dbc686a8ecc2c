"""Rehearsals: copies of a guarded database in scratch, and the real downgrade run on them."""

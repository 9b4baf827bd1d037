"""What is on disk: a run's folder, the cache of results, the journal."""

"""Pictures as a few bytes: the .pq file, and the ways to write codes into it."""

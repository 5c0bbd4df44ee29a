"""From a recipe to a page of memory: how packed weights are made, kept, found again on disk, noticed as stale, and freed."""

"""A dataset to look at: a page with videos and curves, and what is odd in it."""

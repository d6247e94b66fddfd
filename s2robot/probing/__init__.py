"""What a frozen feature holds, read linearly: cube, depth, segments, another encoder."""

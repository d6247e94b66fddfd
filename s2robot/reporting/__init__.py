"""The parts that all reports share: the page and the style of plots."""

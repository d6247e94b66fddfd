"""What every report is made of: the page and the look of its pictures."""

"""What the methods cost, as ratios to the plain model measured in the same run."""

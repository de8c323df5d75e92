"""What chapters print and do not measure themselves: a module for each of them."""

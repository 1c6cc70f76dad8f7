"""Training: the loop, its state, and what it writes down."""

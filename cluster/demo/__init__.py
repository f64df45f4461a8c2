"""The demo: a model's whole life on one machine, through the commands that a user has, and its report."""

"""How ``jobs.evaluate`` asks: one engine for the base model and its adapter."""

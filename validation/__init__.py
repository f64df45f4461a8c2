"""The judges: data, guards and models."""

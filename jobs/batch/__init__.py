"""The parts of ``jobs.batch_inference``: where prompts come from, what answers them, where answers go."""

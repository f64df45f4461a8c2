"""The jobs: one verb a file, each a command that runs the same in a test, on a laptop and under Ray Jobs."""

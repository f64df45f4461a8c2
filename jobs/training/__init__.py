"""How ``jobs.finetune`` trains: the rows and their order, the workers' loop, checkpoints and resuming."""

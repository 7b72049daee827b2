"""What carries a run: steps of learning, CUDA graphs, checkpoints, the log, several processes, shared flags."""

"""rtsim predicts how long a Transformer takes to run on a GPU system, without profiling it."""

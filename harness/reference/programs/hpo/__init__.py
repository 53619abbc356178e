"""The program `hpo`: a Bayesian search for hyperparameters, each trial of which is a training run on its own nodes."""
